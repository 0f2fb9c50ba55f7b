"""What the demo holds and how it is trained."""
