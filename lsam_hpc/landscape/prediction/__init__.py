"""Predictions of single states and of ensembles of states, and how well they are calibrated."""
