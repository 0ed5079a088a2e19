"""A client for OpenAI-compatible servers, with limits, retries and load balancing; evaluation uses it too."""
