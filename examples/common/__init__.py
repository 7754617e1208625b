"""Data, models, evaluation and the training loop that the examples and benchmarks share."""
