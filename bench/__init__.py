"""Benchmarks: `make bench`. Each row makes its data, is measured in one run, and has a ratio."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "py"))
