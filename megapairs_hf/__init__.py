"""Composed-image-retrieval data from any captioned image corpus, and retrievers trained on it."""

__version__ = "0.1.0"
