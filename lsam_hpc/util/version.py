"""The version of the installed package: its build takes it from the last tag, so the code does not hold it."""

from importlib import metadata

try:
    __version__ = metadata.version("lsam-hpc")
except metadata.PackageNotFoundError:  # a folder on PYTHONPATH
    __version__ = "0.0"
