"""Short scripts to start from, one for each framework and kind of data: `python -m examples.start.plain_pytorch`."""
