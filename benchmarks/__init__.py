"""Benchmarks of speed, memory and accuracy, with the results that they gave."""
