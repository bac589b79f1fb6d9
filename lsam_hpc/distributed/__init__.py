"""LSAM over MPI: chains, windows and exchanges of all ranks. Importing it starts MPI."""

import importlib

from lsam_hpc.util.preflight import needed_transports

with needed_transports():  # the modules of this package import MPI
    importlib.import_module("mpi4py.MPI")
