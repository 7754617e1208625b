"""Frozen encoders of images and captions, dense language guidance, decoders."""
