"""What is wrong with the labels: told as what was expected, what came, and what to do."""


class LabelFileError(ValueError):
    """A label file, or a folder of them, that cannot be counted."""
