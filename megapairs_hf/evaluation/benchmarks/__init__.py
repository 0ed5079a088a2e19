"""Benchmarks of the field and held-out corpora: their settings, readers and data checks."""
