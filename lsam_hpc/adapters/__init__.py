"""Adapters for the training loops of other packages; each module needs its package, and nothing else here does."""
