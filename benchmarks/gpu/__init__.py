"""Everything that is measured on a GPU, one stage a file: `python -m benchmarks.gpu.run` (`make gpu`)."""
