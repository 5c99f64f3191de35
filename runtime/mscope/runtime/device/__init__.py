"""One CUDA device through cuda-python: memory, streams, graphs, and the arrays that other libraries keep there."""
