"""Runs tests marked `mpi` as jobs, and gives the others the MPIs at hand."""

from __future__ import annotations

from pathlib import Path

import mpi4py
import pytest

from tests.helpers.batch import LIMIT, Batch
from tests.helpers.mpis import Mpi, available

# This process only starts MPI jobs; Open MPI 5 leaves a file in /dev/shm for each one that uses it outside mpirun.
mpi4py.rc.initialize = False

_batches: dict[tuple[Path, str, int], Batch] = {}
_NAMES = ("openmpi", "mpich")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("mpi")
    if marker is not None:
        jobs = [(name, ranks) for name in _NAMES for ranks in marker.kwargs["np"]]
        metafunc.fixturenames.append("mpi_job")
        metafunc.parametrize("mpi_job", jobs, ids=[f"{name}-np{ranks}" for name, ranks in jobs])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("mpi") is not None:
            # The first test of a batch waits for all of them.
            item.add_marker(pytest.mark.timeout(LIMIT * 20))


@pytest.fixture
def comm() -> None:
    """Stands for the communicator that a test's body gets on each rank."""


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if pyfuncitem.get_closest_marker("mpi") is None:
        return None
    name, ranks = pyfuncitem.callspec.params["mpi_job"]
    mpi = available().get(name)
    if mpi is None:
        pytest.skip(f"no {name} here: tests/run.sh installs it and sets LSAM_TEST_MPICH")
    key = (pyfuncitem.path, name, ranks)
    if key not in _batches:
        together = [
            item.originalname
            for item in pyfuncitem.session.items
            if isinstance(item, pytest.Function)
            and item.path == pyfuncitem.path
            and item.get_closest_marker("mpi") is not None
            and item.callspec.params["mpi_job"] == (name, ranks)
        ]
        folder = pyfuncitem.funcargs["tmp_path_factory"].mktemp(f"{pyfuncitem.path.stem}-{name}-np{ranks}")
        _batches[key] = Batch(mpi, ranks, pyfuncitem.path, together, folder)
    why = _batches[key].failure(pyfuncitem.originalname)
    if why is not None:
        pytest.fail(why, pytrace=False)
    return True


@pytest.fixture(autouse=True)
def _factory(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Makes tmp_path_factory known to every test, for the batches."""


@pytest.fixture(params=_NAMES)
def mpi(request: pytest.FixtureRequest) -> Mpi:
    """Each of the MPIs in turn."""
    if request.param not in available():
        pytest.skip(f"no {request.param} here: tests/run.sh installs it and sets LSAM_TEST_MPICH")
    return available()[request.param]
