"""Descriptions and instructions from the two captions alone, without any model."""
