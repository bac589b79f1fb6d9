"""Trains a real network in the order of a simulated run, with all chains in one process."""
