"""Examples: real training jobs built on the public API of `classbalance_losses`."""
