"""Trains a real network in the order of a simulated run: all chains in one process, which a simulator drives."""
