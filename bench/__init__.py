"""Benchmarks: `make bench`. Each row makes its own data and is measured in one run."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "py"))
