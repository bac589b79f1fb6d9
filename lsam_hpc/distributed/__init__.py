"""LSAM over MPI: chains, windows and exchanges of all ranks."""
