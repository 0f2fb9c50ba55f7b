"""doctor's checks."""
