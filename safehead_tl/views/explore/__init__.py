"""TODO views/explore."""
