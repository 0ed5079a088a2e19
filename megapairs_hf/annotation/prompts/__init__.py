"""Prompts as files, the few-shot examples, and how responses are parsed."""
