"""Runs' records in W&B: its API, and exports."""
