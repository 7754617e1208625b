"""How losses differ: the laws of ``classbalance_losses.testing`` on this library's losses and other people's."""
