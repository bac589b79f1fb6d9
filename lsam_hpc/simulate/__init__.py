"""A run on a machine that is not here: a discrete-event model of ranks, exchanges, memory and network."""
