"""What answers: servers asked in parallel, a model in this process, or CLIP as a verifier."""
