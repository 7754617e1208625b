"""DyCE in semi-supervised 3-D organ segmentation: Table 5 of the SemiDAViL paper (CVPR 2025), on Synapse (BTCV)."""
