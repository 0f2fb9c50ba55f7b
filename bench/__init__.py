"""Benchmarks: `make bench`. Each row makes its data, is measured in one run, and has a ratio."""
