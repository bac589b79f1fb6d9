"""The checks before Horovod starts."""

from types import SimpleNamespace

import pytest

from lsam_hpc.errors import InputError
from lsam_hpc.horovod import start


def horovod(mpi=True, rank=0, size=2):
    return SimpleNamespace(mpi_built=lambda: mpi, rank=lambda: rank, size=lambda: size)


def maps(tmp_path, *libraries):
    lines = ["7f00-7f01 r--p 00000000 00:00 0", "7f01-7f02 r--p 00000000 08:01 12 /lib/libc.so.6"]
    lines += [f"7f02-7f03 r-xp 00000000 08:01 13 {library}" for library in libraries for _ in range(2)]
    (tmp_path / "maps").write_text("\n".join(lines))
    return tmp_path / "maps"


def test_a_build_without_mpi_is_named(monkeypatch):
    monkeypatch.delenv("HOROVOD_CONTROLLER", raising=False)
    start.check_build(horovod())
    with pytest.raises(InputError, match=r"Gloo only.*install_horovod.sh"):
        start.check_build(horovod(mpi=False))
    monkeypatch.setenv("HOROVOD_CONTROLLER", "gloo")
    with pytest.raises(InputError, match="HOROVOD_CONTROLLER: expected mpi, found gloo"):
        start.check_build(horovod())


@pytest.mark.parametrize(
    "libraries",
    [
        ("/a/libmpi.so.40",),
        ("/a/libmpi.so.40.40.7", "/a/libmpi_mpifh.so.40", "/a/libmpi_cxx.so"),
        ("/usr/lib/libmpich.so.12.2.0",),
        (),
    ],
)
def test_one_mpi_passes(tmp_path, libraries):
    start.check_libraries(maps(tmp_path, *libraries))


@pytest.mark.parametrize("other", ["/b/libmpi.so.12", "/b/libmpich.so.12.5.0", "/b/with space/libmpi-3fa2.so.40.1"])
def test_two_mpis_are_named(tmp_path, other):
    with pytest.raises(
        InputError, match=r"expected one library for mpi4py and Horovod, found /a/libmpi\.so\.40 and"
    ) as e:
        start.check_libraries(maps(tmp_path, "/a/libmpi.so.40", other))
    assert other in str(e.value)


def test_no_map_is_no_error(tmp_path):
    start.check_libraries(tmp_path / "none")


def test_ranks_that_differ_are_named():
    start.check_ranks(horovod(), SimpleNamespace(rank=0, size=2))
    with pytest.raises(InputError, match="rank 0 of 2 where mpi4py has rank 0 of 1"):
        start.check_ranks(horovod(), SimpleNamespace(rank=0, size=1))
