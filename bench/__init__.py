"""Benchmarks. Each prints ratios taken in one run; absolute figures mean nothing elsewhere."""
