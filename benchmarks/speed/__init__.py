"""Time of every loss beside `F.cross_entropy`, in one run: `make bench`."""
