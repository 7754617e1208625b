"""HVL's networks."""
