"""Statistics of chains (mixing, spread) and of their exchanges (staleness, waits)."""
