"""Encoders, decoders, HRDA's fusion of two resolutions, and discriminators."""
