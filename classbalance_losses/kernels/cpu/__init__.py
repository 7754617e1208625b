"""The backend "cpu": loops that numba compiles, on torch's own threads."""
