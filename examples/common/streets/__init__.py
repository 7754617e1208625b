"""Street scenes from a seed, with CamVid's 11 classes: a data set that every machine has.

A ground plan, a camera and the weather are drawn at random; then everything is painted from far to near.
Needs numpy and Pillow, and torch for `Streets`.
"""

from .classes import CLASSES, IGNORE_INDEX, THINGS
from .dataset import Streets
from .render import render_instances, render_street

__all__ = ["CLASSES", "IGNORE_INDEX", "THINGS", "Streets", "render_instances", "render_street"]
