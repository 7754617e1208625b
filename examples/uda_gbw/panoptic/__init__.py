"""Panoptic segmentation with GBW: EDAPS with a bottom-up instance branch, on SYNTHIA and Cityscapes or on streets."""
