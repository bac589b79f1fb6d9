"""Which extra of lsam-hpc installs an optional package."""

from __future__ import annotations

EXTRAS = {  # module -> the extra that has it
    **dict.fromkeys(("pytorch_optimizer", "PIL", "yaml", "tomli", "simpy", "ml_dtypes"), "train"),
    **dict.fromkeys(("matplotlib", "pandas", "xarray", "hdf5plugin", "pyarrow", "tensorboard"), "analysis"),
    **dict.fromkeys(("arviz", "plotly", "jinja2"), "analysis"),
}
DEPENDENCIES = ("torch", "numpy", "mpi4py", "h5py", "tqdm")  # packages that lsam-hpc always needs


def install_command(module: str) -> str:
    """Return the command that installs a package: its extra, or the package itself."""
    return f"pip install 'lsam-hpc[{EXTRAS[module]}]'" if module in EXTRAS else f"pip install {module}"
