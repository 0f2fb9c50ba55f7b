"""The frontier, the choice from it, and the account of every candidate."""
