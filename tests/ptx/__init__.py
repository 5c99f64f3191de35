"""Runs the PTX that nvcc made of the CUDA kernels, on numpy: one array element a thread.

It is slow, exact where IEEE arithmetic is exact, and strict: an access out of bounds or misaligned, a race between
threads that no barrier orders, a barrier that some threads do not reach and an instruction that it does not know are
errors. What it cannot see: the device's own rounding of ex2.approx and div.approx, its memory model beyond barriers,
and its speed.
"""
