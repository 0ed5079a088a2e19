"""Synthetic scenes with captions and edits, and their rendering."""
