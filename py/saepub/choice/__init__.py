"""The frontier, what to pick of it, and what to say about it."""
