"""How a query becomes scores: one embedding, zero-shot composition, CIReVL, re-ranking."""
