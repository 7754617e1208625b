"""Panoptic segmentation with GBW: a semantic, a centre and an offset head on one encoder, on generated streets."""
