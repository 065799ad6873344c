"""Benchmarks: data sets on disk, baseline methods, and the number of clicks that a method needs."""
