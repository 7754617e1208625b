"""Accuracy of the losses: grids in TOML -> runs -> results -> tables and plots."""
