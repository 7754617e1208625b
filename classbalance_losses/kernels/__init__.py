"""Fast paths behind the stages in ``ops``: blocked functions for the CPU, Triton kernels for CUDA."""
