"""Discrete-event simulation of a run on another machine: ranks, exchanges, memory and network."""
