"""Command lines, files, text, and what a process finds out of its start."""
