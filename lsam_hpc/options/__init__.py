"""Every option, with its default, its range and its choices: without torch and MPI."""
