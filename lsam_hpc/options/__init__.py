"""Every option, with its default, its range and its choices; no torch and no MPI."""
