"""Benchmarks: ratios against the guide's plain-Python way, measured in one run on the same data. Not tests."""
