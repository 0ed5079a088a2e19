"""Training data: sources, what a step samples of them, its batch, images ahead of the model."""
