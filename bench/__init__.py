"""Benchmarks: data sets on disk, rival methods, and the number of clicks that a method needs."""
