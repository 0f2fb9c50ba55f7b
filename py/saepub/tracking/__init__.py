"""What W&B says of a run."""
