"""The paper's ablations on the project's own task, cluttered digits: `python benchmarks/ablations --help`."""
