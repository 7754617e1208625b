"""Where HVL's images come from."""
