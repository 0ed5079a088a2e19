"""Images: where a corpus keeps them, how they are decoded, and how an encoder wants them."""
