"""Synthetic scenes with captions and edits, and how they are drawn."""
