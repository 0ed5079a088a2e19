"""Nearest neighbors: exact and approximate search over memory-mapped embeddings."""
