"""The demo's contents, and the training of its SAEs."""
