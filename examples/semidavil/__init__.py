"""SemiDAViL (CVPR 2025): semi-supervised domain adaptation for segmentation with language guidance and DyCE."""
