"""The losses, one file a method."""
