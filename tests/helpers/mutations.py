"""Damages runs at random and reads them with every reader: `python -m tests.helpers.mutations FOLDER COUNT SEED`.

A reader or tool must either report an error in one line or return the values that were written. (Values of files of
version 1 are not compared: they have no check sums.) Links out of the run point to a pipe without a writer: a reader
that follows one hangs until the time limit, and the stacks are printed. Prints a line of JSON with counts.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import io
import json
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from lsam_hpc import InputError
from lsam_hpc.cli import main as lsam
from lsam_hpc.landscape import (
    Directions,
    Projection,
    Surface,
    read_directions,
    read_projection,
    read_surface,
    write_directions,
    write_projection,
    write_surface,
)
from lsam_hpc.trajectory import Run, Snapshots, index, merge, schema, verify
from tests.helpers.logs import SKETCH, VECTOR, exchange_row, leave_unclosed, make_run, make_version_1, step_row

ROWS = 120
FLAT_LAYOUT = [("weight", (2, 3), 0), ("bias", (3,), 6), ("scale", (), 9)]
LIMIT = 60  # s for one mutation


def main(folder: Path, count: int, seed: int) -> dict[str, int]:
    """Run the mutations; return how often each outcome occurred."""
    bases = make_bases(folder / "bases")
    trap = folder / "outside.h5"
    os.mkfifo(trap)
    counts: Counter[str] = Counter()
    for number in range(count):
        chance = random.Random(f"{seed} {number}")
        path = folder / "run"
        base = chance.choice(sorted(bases))
        shutil.copytree(bases[base], path)
        file = chance.choice(sorted(f for f in path.iterdir() if f.is_file()))
        how = chance.choice(BYTES if base == "unclosed" or file.suffix != ".h5" else (*BYTES, *STRUCTURE, *STRUCTURE))
        faulthandler.dump_traceback_later(LIMIT, exit=True)
        try:
            how(file, chance, trap)
        except (
            OSError,
            RuntimeError,
            ValueError,
            KeyError,
            IndexError,
            TypeError,
            OverflowError,
        ):  # h5py cannot make this damage
            counts["not made"] += 1
        before = sorted(os.listdir(folder))
        try:
            if base == "landscape":
                counts[read_landscape(path)] += 1
            else:
                counts[read_everything(path, file, folder, COMPARED[base == "first"], chance)] += 1
        except Exception:
            print(f"seed {seed}, number {number}: {how.__name__} of {base}/{file.name}", file=sys.stderr)
            raise
        faulthandler.cancel_dump_traceback_later()
        assert sorted(os.listdir(folder)) == before, "something was left behind"
        shutil.rmtree(path)
    return dict(counts)


def make_bases(folder: Path) -> dict[str, Path]:
    """Make a run of each kind."""
    folder.mkdir()
    result = {"steps": float(ROWS), "center_test_error": 1.5}
    closed = make_run(folder / "closed", 2, ROWS, result, states=True)
    unclosed = leave_unclosed(folder / "unclosed", ROWS, sketch=SKETCH, snapshots=Snapshots()).parent
    shutil.copy(closed / "config.json", unclosed)
    first = make_version_1(folder / "first", rows=ROWS).parent
    indexed = shutil.copytree(closed, folder / "indexed")
    index(Run(indexed))
    merged = folder / "merged"
    merged.mkdir()
    merge(Run(closed), merged / "merged.h5")
    landscape = folder / "landscape"
    landscape.mkdir()
    flat = np.arange(10, dtype=np.float32)
    write_directions(landscape / "directions.h5", FLAT_LAYOUT, Directions(flat, -flat, flat, np.array([0.7, 0.2])))
    write_surface(
        landscape / "surface.h5", Surface(flat[:4], flat[:3], {"train_loss": np.ones((3, 4))}, "directions.h5")
    )
    write_projection(landscape / "proj.h5", Projection(flat, flat, {"iteration": np.arange(10)}))
    for file in folder.rglob("*.h5"):
        os.utime(file, (0, 0))  # a file that changed recently may be being written, and readers would try again
    return {path.name: path for path in (closed, unclosed, first, indexed, merged, landscape)}


def read_landscape(path: Path) -> str:
    """Read loss-landscape's files; they have no check sums, and values are not compared."""
    errors = 0
    for name, work in (
        ("directions.h5", lambda file: read_directions(file, FLAT_LAYOUT)),
        ("surface.h5", read_surface),
        ("proj.h5", read_projection),
    ):
        try:
            work(path / name)
        except InputError as error:
            check_line(error)
            errors += 1
    return "error" if errors else "right"


def read_everything(
    path: Path, changed: Path, folder: Path, parts: Sequence[Callable[[Run, int], None]], chance: random.Random
) -> str:
    """Use every reader and tool on the run and on the file; return "error" if any reports one, else "right"."""
    errors = 0
    for target in [path, changed] if changed.suffix == ".h5" else [path]:
        for partial in (False, True):
            try:
                run = Run(target, partial=partial)
                if not partial:
                    json.dumps(run.config)
            except InputError as error:
                errors += 1
                check_line(error)
                continue
            wrong = {(rank, part) for rank in run.ranks for part in parts if read(run, rank, part)}
            lines = verify(run)
            errors += len(wrong) + len(lines)
            for line in lines:
                check_line(line)
            out = folder / "out.h5"
            try:
                merge(run, out)
            except InputError as error:
                errors += 1
                check_line(error)
                continue
            again = Run(out, partial=True)
            assert {(rank, part) for rank in again.ranks for part in parts if read(again, rank, part)} <= wrong
            out.unlink()
            if run.path.is_dir() and not (run.path / "run.h5").exists():
                try:
                    index(run).unlink()
                except InputError as error:
                    check_line(error)
        target_words = str(target)
        for words in (chance.choice((["--partial", "--json"], ["--verify"])), ["--verify", "--json"]):
            code, text = tool("inspect", target_words, *words)
            errors += code > 0
            if code < 2 and "--json" in words:
                json.loads(text)
        partial = chance.choice(([], ["--partial"]))
        for to in ("npz", chance.choice(("csv", "parquet", "tensorboard", "li2018"))):
            out = folder / "out"
            code, _ = tool("export", target_words, "--to", to, "--out", str(out), *partial)
            errors += code > 0 and to != "li2018"  # which refuses these snapshots: they lie on a line
            if code == 0:
                if to == "npz" and parts is COMPARED[False]:
                    compare_npz(out)
                (out.unlink if out.is_file() else functools.partial(shutil.rmtree, out))()
    return "error" if errors else "right"


def tool(*words: str) -> tuple[int, str]:
    """Run a tool; return its exit code and output. If it fails, it must print a one-line error."""
    out_text, err_text = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out_text), contextlib.redirect_stderr(err_text):
        code = lsam(words)
    assert code in (0, 1, 2)
    lines = err_text.getvalue().splitlines()
    assert len(lines) == 1 or code < 2, lines
    for line in lines:
        check_line(line)
    return code, out_text.getvalue()


def compare_npz(file: Path) -> None:
    """Compare the arrays of an export with the written values."""
    with np.load(file, allow_pickle=False) as arrays:
        for rank in (f"rank-{number:04d}" for number in arrays["ranks"]):
            for table, row in (("step", step_row), ("exchange", exchange_row)):
                i = arrays[f"{rank}/{table}/iteration"]
                assert ((i >= 0) & (i < ROWS)).all()
                for name in row(0).keys() - {"began"}:
                    expected = np.array([row(int(k))[name] for k in i], arrays[f"{rank}/{table}/{name}"].dtype)
                    np.testing.assert_array_equal(arrays[f"{rank}/{table}/{name}"], expected, err_msg=name)
            for kind, make in (("sketch", SKETCH), ("snapshot", np.asarray)):
                if f"{rank}/{kind}/sample/values" in arrays:
                    for i, values in zip(
                        arrays[f"{rank}/{kind}/sample/iteration"], arrays[f"{rank}/{kind}/sample/values"], strict=True
                    ):
                        np.testing.assert_array_equal(values, make(i * VECTOR))


def read(run: Run, rank: int, part: Callable[[Run, int], None]) -> int:
    """Read a part; return 1 if there was a clear error."""
    try:
        part(run, rank)
    except InputError as error:
        check_line(error)
        return 1
    return 0


def steps(run: Run, rank: int) -> None:
    """Compare steps with the written values, which follow from the iteration."""
    table = run.steps(rank)
    i = table["iteration"]
    assert (np.diff(i) > 0).all()
    assert ((i >= 0) & (i < ROWS)).all()
    for name, factor in step_row(1).items():
        np.testing.assert_array_equal(table[name], (factor * i).astype(table[name].dtype))


def exchanges(run: Run, rank: int) -> None:
    """Compare exchanges with the written values."""
    table = run.exchanges(rank)
    i = table["iteration"]
    assert ((i >= 0) & (i < ROWS)).all()
    rows = [exchange_row(int(k)) for k in i]
    for name in exchange_row(0).keys() - {"began"}:
        np.testing.assert_array_equal(table[name], [row[name] for row in rows], err_msg=name)


def sketches(run: Run, rank: int) -> None:
    """Compare sketches with the written values."""
    table = run.sketch(rank)
    for i, values in zip(table["iteration"], table["values"], strict=True):
        np.testing.assert_array_equal(values, SKETCH(i * VECTOR).sum(0))


def snapshots(run: Run, rank: int) -> None:
    """Compare snapshots with the written values."""
    for row, i in enumerate(run.snapshots(rank)["iteration"]):
        np.testing.assert_array_equal(run.snapshot(rank, row), i * VECTOR)


def result(run: Run, rank: int) -> None:
    """Compare the result with the written values."""
    values = run.result(rank)
    if values is not None and run.logs[rank].version > 1:
        assert (values["steps"], values["center_test_error"]) == (ROWS, 1.5)


def everything(run: Run, rank: int) -> None:
    """Read without comparing."""
    run.steps(rank), run.exchanges(rank), run.result(rank)


COMPARED = ((steps, exchanges, sketches, snapshots, result), (everything,))


def check_line(error: InputError | str) -> None:
    """Check that a message is one line of less than 2,000 characters."""
    assert len(str(error).splitlines()) == 1, str(error)
    assert len(str(error)) < 2000, str(error)


# Mutations of the bytes of a file.
def flip(file: Path, chance: random.Random, trap: Path) -> None:
    """Flip bits anywhere."""
    data = bytearray(file.read_bytes())
    for _ in range(chance.choice((1, 1, 3, 30))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    write(file, data)


def flip_head(file: Path, chance: random.Random, trap: Path) -> None:
    """Flip bits in the first pages, where most of the structure is."""
    data = bytearray(file.read_bytes())
    for _ in range(chance.choice((1, 2, 8))):
        data[chance.randrange(min(len(data), 60_000))] ^= 1 << chance.randrange(8)
    write(file, data)


def overwrite(file: Path, chance: random.Random, trap: Path) -> None:
    """Overwrite a stretch with zeros, ones, noise, or another stretch."""
    data = bytearray(file.read_bytes())
    length = min(chance.choice((1, 8, 100, 4096, 20_000)), len(data))
    at, other = (chance.randrange(len(data) - length + 1) for _ in range(2))
    data[at : at + length] = chance.choice(
        (bytes(length), b"\xff" * length, chance.randbytes(length), data[other : other + length])
    )
    write(file, data)


def cut(file: Path, chance: random.Random, trap: Path) -> None:
    """Cut the end off."""
    data = file.read_bytes()
    write(file, data[: chance.choice((0, 1, 48, 4096, chance.randrange(len(data)), chance.randrange(len(data))))])


def insert(file: Path, chance: random.Random, trap: Path) -> None:
    """Insert or remove bytes, so that all bytes behind them move."""
    data = file.read_bytes()
    at = chance.randrange(len(data))
    write(file, data[:at] + chance.choice((b"", b"x", bytes(4096))) + data[at + chance.choice((0, 1, 512)) :])


def remove(file: Path, chance: random.Random, trap: Path) -> None:
    """Remove the file."""
    file.unlink()


def strange(file: Path, chance: random.Random, trap: Path) -> None:
    """Replace the file by a folder, a pipe or a link."""
    file.unlink()
    match chance.randrange(4):
        case 0:
            file.mkdir()
        case 1:
            os.mkfifo(file)
        case 2:
            file.symlink_to(trap)
        case 3:
            file.symlink_to(file)


def write(file: Path, data: bytes | bytearray) -> None:
    """Replace a file's bytes, and keep its time of change old."""
    file.write_bytes(data)
    os.utime(file, (0, 0))


BYTES = (flip, flip, flip_head, flip_head, overwrite, overwrite, cut, insert, remove, strange)


# Mutations of the HDF5 objects in a file.
@contextlib.contextmanager
def editing(file: Path) -> Iterator[h5py.File]:
    """Open a closed file to change it."""
    with h5py.File(file, "r+", libver="latest") as root:
        yield root
    os.utime(file, (0, 0))


def objects(root: h5py.File) -> list[str]:
    """Return the names of all groups and datasets."""
    names: list[str] = []
    root.visit(names.append)
    return sorted(names)


def hostile_attribute(file: Path, chance: random.Random, trap: Path) -> None:
    """Change or remove an attribute of the schema."""
    with editing(file) as root:
        part = chance.choice([root, *(root[n] for n in objects(root) if n.startswith("rank-") and n.count("/") == 0)])
        part = chance.choice([part, *([part["sketch"]] if "sketch" in part else [])])
        name = chance.choice([*schema.ATTRIBUTES, *schema.SKETCH_ATTRIBUTES])
        if name in part.attrs:
            del part.attrs[name]
        value = chance.choice(
            (
                None,
                "",
                "x",
                0,
                -1,
                1,
                3,
                2**62,
                1e300,
                float("nan"),
                [1, 2],
                "[" * 60_000,
                "é\x07" * 9,
                b"\xff\xfe",
                np.void(b"\x80\x04K\x01."),
                h5py.Empty("f4"),
                root.ref,
                np.zeros((300, 300)),
            )
        )
        if value is not None:
            part.attrs[name] = value


def wrong_version(file: Path, chance: random.Random, trap: Path) -> None:
    """Change the format or the schema version of the file."""
    with editing(file) as root:
        part = chance.choice([root, *(root[n] for n in objects(root) if n.startswith("rank-") and n.count("/") == 0)])
        name = chance.choice(("schema_version", "format"))
        kinds = (schema.FORMAT, schema.MERGED, schema.INDEX, "lsam-hpc trajectory\n", b"lsam-hpc trajectory\xff")
        versions = (0, 1, 3, -1, 2.0, 2**62, "2", "1; import os", [1, 2], float("nan"), True)
        part.attrs[name] = chance.choice(versions if name == "schema_version" else kinds)


def described(file: Path, chance: random.Random, trap: Path) -> None:
    """Write odd values into attributes that only describe."""
    with editing(file) as root:
        part = root[chance.choice(objects(root))]
        for name in ("unit", "description"):
            part.attrs[name] = chance.choice((3, "x" * 60_000, b"\xff", [[1.5]], h5py.Empty("i8"), root.ref))


def wrong_dataset(file: Path, chance: random.Random, trap: Path) -> None:
    """Replace a dataset or a group by one of another type, shape or kind."""
    with editing(file) as root:
        name = chance.choice(objects(root))
        del root[name]
        match chance.randrange(10):
            case 0:
                root[name] = np.zeros(ROWS, chance.choice(("i2", "f8", "S3", "c8", "?", "f2")))
            case 1:
                root.create_dataset(name, (2**40,), "f4", chunks=(1024,), maxshape=(None,))
            case 2:
                root.create_dataset(name, (2**20, 2**20, 2**20), "i8", chunks=(1, 1, 1024))
            case 3:
                root[name] = np.float64(3)
            case 4:
                root.create_group(name)
            case 5:
                root[name] = np.dtype([("a", "f4"), ("b", "S9")])
            case 6:
                root.create_dataset(name, (ROWS,), h5py.ref_dtype)
            case 7:
                root.create_dataset(name, (ROWS,), h5py.vlen_dtype("f4"), chunks=(1024,), maxshape=(None,))
            case 8:
                root.create_dataset(name, (ROWS,), "f4", chunks=(1024,), maxshape=(None,), compression="gzip")
            case 9:
                filters = chance.choice(({"fletcher32": True}, {"scaleoffset": 3}, {"compression": 30_000}))
                filters |= {"allow_unknown_filter": True} if "compression" in filters else {}
                root.create_dataset(name, (ROWS,), "f4", chunks=(1024,), maxshape=(None,), **filters)


def link_away(file: Path, chance: random.Random, trap: Path) -> None:
    """Replace a dataset or a group by a link that leads out of the run, or nowhere."""
    with editing(file) as root:
        name = chance.choice(objects(root))
        del root[name]
        match chance.randrange(5):
            case 0:
                root[name] = h5py.ExternalLink(str(trap), chance.choice(("/", f"/{name}")))
            case 1:
                root[name] = h5py.SoftLink(chance.choice(("/nowhere", f"/{name}", "/")))
            case 2:
                root.create_dataset(name, (ROWS,), "f4", external=[(str(trap), 0, 4 * ROWS)])
            case 3:
                layout = h5py.VirtualLayout((ROWS,), "f4")
                layout[:] = h5py.VirtualSource(str(trap), "x", (ROWS,), "f4")
                root.create_virtual_dataset(name, layout)
            case 4:
                root[name] = root  # a hard link in a circle


def resize(file: Path, chance: random.Random, trap: Path) -> None:
    """Make a table longer or shorter, or one of its columns."""
    with editing(file) as root:
        columns = [n for n in objects(root) if isinstance(root[n], h5py.Dataset) and root[n].maxshape[:1] == (None,)]
        name = chance.choice(columns)
        length = chance.choice((0, 1, ROWS - 1, ROWS + 1, 5000, 2**45))
        table = root[name].parent
        for column in table if chance.random() < 0.5 else [name.rpartition("/")[2]]:
            if table[column].maxshape[:1] == (None,):
                table[column].resize(length, axis=0)


def other_numbers(file: Path, chance: random.Random, trap: Path) -> None:
    """Write other numbers into a column."""
    with editing(file) as root:
        name = chance.choice([n for n in objects(root) if isinstance(root[n], h5py.Dataset) and root[n].size])
        if root[name].dtype.kind in "iuf" and not root[name].is_virtual:
            at = chance.randrange(len(root[name]))
            root[name][at] = chance.choice((0, 1, 77, 2**31 - 1))
        elif root[name].dtype.kind == "O":
            root[name][chance.randrange(len(root[name]))] = chance.choice(("", "9" * 5000, "-1,4", "a,b", "1e9"))


STRUCTURE = (
    hostile_attribute,
    wrong_version,
    described,
    wrong_dataset,
    wrong_dataset,
    link_away,
    link_away,
    resize,
    other_numbers,
)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
