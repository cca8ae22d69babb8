"""Ours beside plain PyTorch and every peer: `pytest benchmarks`, `make bench`, `make gpu`."""
