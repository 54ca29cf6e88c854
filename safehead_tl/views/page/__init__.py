"""TODO views/report."""
