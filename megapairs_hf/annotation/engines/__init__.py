"""The engines: servers with many requests in flight, a local model, and CLIP scores as a verifier."""
