"""Benchmarks side by side with other ways to move the same rows, on the same servers and data."""
