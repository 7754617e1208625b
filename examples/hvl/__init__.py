"""HVL: semi-supervised segmentation with queries made of text, around the library's vision-language losses."""
