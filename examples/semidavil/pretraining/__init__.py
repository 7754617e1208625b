"""Vision-language pre-training in miniature: equation 1, its run, and how well its encoder segments untrained."""
