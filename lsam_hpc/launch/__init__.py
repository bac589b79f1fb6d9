"""Checks of the machine, batch scripts, and running Horovod scripts unchanged."""
