"""A run's directory: made, and written while the run trains."""
