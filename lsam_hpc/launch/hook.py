"""Has `import horovod.torch`, in whatever form, find LSAM's optimizer."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from lsam_hpc.errors import InputError
from lsam_hpc.preflight import needed_transports

REPLACED = "horovod.torch"
REFUSED = ("horovod.tensorflow", "horovod.keras", "horovod.mxnet")


class Hook(MetaPathFinder):
    """Puts LSAM's names into `horovod.torch` when it has been imported, and refuses Horovod's other frameworks."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's own spec, with what is to be done after it, or None for all other modules."""
        refuse(fullname)
        if fullname != REPLACED:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader, self._name)
        return spec


class _Then(Loader):
    """Loads a module by its own loader and then has LSAM put its names in."""

    def __init__(self, loader: Loader, name: str) -> None:
        self._loader = loader
        self._name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Leave it to the own loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code, then LSAM's."""
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        with needed_transports():
            importlib.import_module("mpi4py.MPI")  # first, so that it finds its own MPI library, not Horovod's
        self._loader.exec_module(module)
        importlib.import_module("lsam_hpc.horovod.api").install(self._name)


def install(name: str) -> None:
    """Look at every import from now on.

    Args:
        name: of the run, for its directory.
    """
    sys.meta_path.insert(0, Hook(name))


def refuse(module: str) -> None:
    """Raise InputError if a module is Horovod's for another framework than PyTorch."""
    for name in REFUSED:
        if module == name or module.startswith(name + "."):
            raise InputError(f"{module}: expected a PyTorch script (horovod.torch), found one for another framework")
