"""The run directory: its creation, and the logs that a run writes."""
