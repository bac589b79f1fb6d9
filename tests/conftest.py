"""Runs tests marked `mpi` as jobs, and gives other tests the installed MPIs as a fixture."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import mpi4py
import pytest

from tests.helpers import forked, mpis
from tests.helpers.batch import LIMIT, Batch, key
from tests.helpers.mpis import Mpi, available

# This process only starts MPI jobs; Open MPI 5 leaves a file in /dev/shm for each one that uses it outside mpirun.
mpi4py.rc.initialize = False
os.environ["HYPOTHESIS_NO_PLUGINS"] = "1"  # one of the plugins imports trio

_batches: dict[tuple[Path | None, str, int], Batch] = {}
# Environment variables that pytest, scikit-learn (where it is imported), torch's compiler (where it runs) and older
# versions of torch.cuda (where it starts) set.
_LIBRARIES = {
    "PYTEST_CURRENT_TEST",
    "KMP_INIT_AT_FORK",
    "KMP_DUPLICATE_LIB_OK",
    "TORCHINDUCTOR_CACHE_DIR",
    "CUDA_MODULE_LOADING",
    "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR",
}
_seconds: dict[str, float] = {}  # duration of each MPI test on the slowest rank
_SEGMENTS = pytest.StashKey[set[Path]]()  # the shared-memory files before the tests
_JOBS = {"mpi", "openmpi", "mpich", "ulfm", "cluster"}  # fixtures of tests that start jobs


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also run tests marked slow, and the second MPI")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        forked.prepare()
        config.stash[_SEGMENTS] = mpis.segments()


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        forked.remove()
        # Jobs whose launcher a test killed leave theirs.
        mpis.remove(mpis.segments() - config.stash.get(_SEGMENTS, mpis.segments()))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "mpi" in metafunc.fixturenames:
        metafunc.parametrize("mpi", _mpis(metafunc.config), indirect=True)
    marker = metafunc.definition.get_closest_marker("mpi")
    if marker is not None:
        counts = marker.kwargs["np"]
        if not metafunc.config.getoption("--all"):
            counts = [ranks for ranks in counts if ranks in (1, max(counts))]
        jobs = [(name, ranks) for name in _mpis(metafunc.config) for ranks in counts]
        metafunc.fixturenames.append("mpi_job")
        metafunc.parametrize("mpi_job", jobs, ids=[f"{name}-np{ranks}" for name, ranks in jobs])


def _mpis(config: pytest.Config) -> list[str]:
    """Return the names of the MPIs to test on: this environment's, or both with --all."""
    return ["openmpi", "mpich"] if config.getoption("--all") else list(available())[:1]


@pytest.hookimpl(tryfirst=True)  # before pytest applies -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow = [item for item in items if _is_slow(item)]
    if config.getoption("--all"):
        items.sort(key=lambda item: not _is_slow(item))  # the longest first, so that workers end at the same time
    elif slow:
        items[:] = [item for item in items if item not in set(slow)]
        config.hook.pytest_deselected(items=slow)
    for item in items:
        if item.get_closest_marker("mpi") is not None:
            # The first test of a batch waits for the whole batch.
            item.add_marker(pytest.mark.timeout(LIMIT * 20))
            item.add_marker("jobs")
        elif _JOBS & set(getattr(item, "fixturenames", ())):
            item.add_marker("jobs")


def _is_slow(item: pytest.Item) -> bool:
    mark = item.get_closest_marker("slow")
    if mark is not None and [*map(type, mark.args)] != [str]:
        raise pytest.UsageError(f"{item.nodeid}: expected slow(WHY), found slow{mark.args}")
    return mark is not None


@pytest.fixture
def comm() -> None:
    """Stand-in for the communicator that a test's body gets on each rank."""


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if pyfuncitem.get_closest_marker("mpi") is None:
        return None
    name, ranks = pyfuncitem.callspec.params["mpi_job"]
    mpi = available().get(name)
    if mpi is None:
        pytest.skip(f"no {name} here: tests/run.sh installs it and sets LSAM_TEST_MPICH")
    alone = _alone(pyfuncitem)
    if (alone, name, ranks) not in _batches:
        batched = [
            (item.path, item.originalname)
            for item in pyfuncitem.session.items
            if isinstance(item, pytest.Function)
            and item.get_closest_marker("mpi") is not None
            and item.callspec.params["mpi_job"] == (name, ranks)
            and _alone(item) == alone
        ]
        folder = pyfuncitem.funcargs["tmp_path_factory"].mktemp(f"{name}-np{ranks}")
        _batches[alone, name, ranks] = Batch(mpi, ranks, batched, folder)
    batch, test = _batches[alone, name, ranks], key(pyfuncitem.path, pyfuncitem.originalname)
    _seconds[pyfuncitem.nodeid] = batch.seconds(test)
    failure = batch.failure(test)
    if failure is not None:
        pytest.fail(failure, pytrace=False)
    return True


def _alone(item: pytest.Item) -> Path | None:
    """Return the file of a test marked `alone`, which shares its job with tests of this file only; else None."""
    return item.path if item.get_closest_marker("alone") is not None else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if number := terminalreporter.config.getoption("durations"):
        terminalreporter.section("slowest MPI tests: seconds on the ranks")
        for seconds, test in sorted(((seconds, test) for test, seconds in _seconds.items()), reverse=True)[:number]:
            terminalreporter.write_line(f"{seconds:.2f}s {test}")


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Fail a test that changes environment variables, because the jobs of later tests would inherit them."""
    before = dict(os.environ)
    yield
    now = dict(os.environ)
    changed = [name for name in sorted({*before, *now} - _LIBRARIES) if before.get(name) != now.get(name)]
    changes = [f"{name}={now.get(name)!r}, before {before.get(name)!r}" for name in changed]
    if changes:
        os.environ.clear()
        os.environ.update(before)
    assert not changes, f"expected an unchanged environment, found {'; '.join(changes)}"


@pytest.fixture(autouse=True)
def _factory(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Make tmp_path_factory available in every test, for the batches."""


@pytest.fixture
def torch_threads() -> Iterator[None]:
    """Restore torch's number of threads after the test."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def openmpi() -> Mpi:
    """Open MPI."""
    if "openmpi" not in available():
        pytest.skip("no Open MPI")
    return available()["openmpi"]


@pytest.fixture
def mpi(request: pytest.FixtureRequest) -> Mpi:
    """Each of the MPIs in turn."""
    if request.param not in available():
        pytest.skip(f"no {request.param} here: tests/run.sh installs it and sets LSAM_TEST_MPICH")
    return available()[request.param]
