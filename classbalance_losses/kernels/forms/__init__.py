"""The forms: value and slope of one pixel, written once for each backend, in files beside each other."""
