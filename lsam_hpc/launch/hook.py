"""An import hook: every form of `import horovod.torch` gets LSAM's optimizer."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from lsam_hpc.errors import InputError
from lsam_hpc.util.preflight import needed_transports

REPLACED = "horovod.torch"
REFUSED = ("horovod.tensorflow", "horovod.keras", "horovod.mxnet")


class Hook(MetaPathFinder):
    """Replaces names of `horovod.torch` after its import, and refuses Horovod's other frameworks."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of `horovod.torch` with a wrapped loader, None for all other modules."""
        refuse(fullname)
        if fullname != REPLACED:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _PatchingLoader(spec.loader, self._name)
        return spec


class _PatchingLoader(Loader):
    """Loads a module with its own loader, then replaces LSAM's names in it."""

    def __init__(self, loader: Loader, name: str) -> None:
        self._loader = loader
        self._name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module with its own loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code, then replace the names."""
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        with needed_transports():
            importlib.import_module("mpi4py.MPI")  # before Horovod, so that it loads its own MPI library
        self._loader.exec_module(module)
        importlib.import_module("lsam_hpc.horovod.api").install(self._name)


def install(name: str) -> None:
    """Install the hook.

    Args:
        name: of the run; part of its directory's default name.
    """
    sys.meta_path.insert(0, Hook(name))


def refuse(module: str) -> None:
    """Raise InputError if a module is Horovod's for another framework than PyTorch."""
    for name in REFUSED:
        if module == name or module.startswith(name + "."):
            raise InputError(
                f"{module}: expected a PyTorch script (horovod.torch), found a script for another framework"
            )
