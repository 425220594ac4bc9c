"""Speed, memory and numerics. Each file is a program: `python benchmarks/head.py`; those for a GPU are in `gpu`."""
