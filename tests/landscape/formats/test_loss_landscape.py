"""Files of tomgoldstein/loss-landscape in both directions; its scripts' reads and writes are repeated with h5py."""

import os

import h5py
import numpy as np
import pytest

from lsam_hpc import InputError
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

LAYOUT = [("conv.weight", (4, 2, 3, 3), 0), ("conv.bias", (4,), 72), ("fc.weight", (5, 4), 76)]
SHAPES = [shape for _, shape, _ in LAYOUT]
SIZE = 96
RNG = np.random.default_rng(0)


def vector():
    return RNG.standard_normal(SIZE).astype(np.float32)


# As in its scripts: h5_util.write_list and read_list, projection.nplist_to_tensor, plot_2D.
def their_write(file, name, arrays):
    group = file.create_group(name)
    for i, array in enumerate(arrays):
        group.create_dataset(str(i), data=array)


def their_read(file, name):
    return [file[name][str(i)] for i in range(len(file[name]))]


def their_vector(arrays):
    return np.concatenate([(a * np.float64(1)).reshape(-1) for a in arrays if len(a.shape) > 0])


def their_contour(path, name):
    with h5py.File(path, "r") as file:
        x, y = np.meshgrid(np.array(file["xcoordinates"][:]), np.array(file["ycoordinates"][:]))
        z = np.array(file[name][:])
    assert x.shape == y.shape == z.shape  # matplotlib's contour requires this
    return x, y, z


def their_crunch(path, xs, ys, loss):
    """Fill a surface file as plot_surface.py does: with -1 first, then by the index in the flat arrays."""
    with h5py.File(path, "a") as file:
        file["dir_file"] = "directions.h5"
        file["xcoordinates"], file["ycoordinates"] = xs, ys
        values = -np.ones((len(xs), len(ys)))
        mesh_x, mesh_y = np.meshgrid(xs, ys)
        for i in range(values.size - 2):  # stopped before the last two points
            values.ravel()[i] = loss(mesh_x.ravel()[i], mesh_y.ravel()[i])
        file["train_loss"] = values
        file["train_acc"] = 100 * (values == 0)


def test_our_directions_in_their_scripts(tmp_path):
    x, y, origin = vector(), vector(), vector()
    path = tmp_path / "directions.h5"
    write_directions(path, LAYOUT, Directions(x, y, origin, np.array([0.75, 0.125])))
    with h5py.File(path, "r") as file:
        assert "ydirection" in file
        for name, flat in (("xdirection", x), ("ydirection", y)):
            arrays = their_read(file, name)
            assert [a.shape for a in arrays] == SHAPES
            np.testing.assert_array_equal(their_vector(arrays), flat)
        assert (file["explained_variance_ratio_"][0], file["explained_variance_ratio_"][1]) == (0.75, 0.125)
    directions = read_directions(path, LAYOUT)
    for name, flat in (("x", x), ("y", y), ("origin", origin), ("explained", [0.75, 0.125])):
        np.testing.assert_array_equal(getattr(directions, name), flat)


def test_a_line_has_one_direction(tmp_path):
    write_directions(tmp_path / "x.h5", LAYOUT, Directions(vector()))
    with h5py.File(tmp_path / "x.h5") as file:
        assert list(file) == ["xdirection"]
    directions = read_directions(tmp_path / "x.h5", LAYOUT)
    assert directions.y is directions.origin is directions.explained is None


def test_their_directions(tmp_path):
    x, y = ([RNG.standard_normal(shape) for shape in SHAPES] for _ in range(2))
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        their_write(file, "xdirection", x)
        their_write(file, "ydirection", y)
    directions = read_directions(tmp_path / "theirs.h5", LAYOUT)
    np.testing.assert_array_equal(directions.x, np.concatenate([a.ravel() for a in x]).astype(np.float32))
    np.testing.assert_array_equal(directions.y, np.concatenate([a.ravel() for a in y]).astype(np.float32))


def test_more_than_ten_parameters_are_in_order(tmp_path):
    layout = [(f"p{i}", (1,), i) for i in range(12)]
    write_directions(tmp_path / "x.h5", layout, Directions(np.arange(12, dtype=np.float32)))
    np.testing.assert_array_equal(read_directions(tmp_path / "x.h5", layout).x, np.arange(12))


def test_parameters_without_dimensions(tmp_path):
    layout = [("scale", (), 0), ("weight", (2,), 1)]
    write_directions(tmp_path / "x.h5", layout, Directions(np.arange(3, dtype=np.float32)))
    np.testing.assert_array_equal(read_directions(tmp_path / "x.h5", layout).x, np.arange(3))
    with h5py.File(tmp_path / "x.h5") as file:
        np.testing.assert_array_equal(their_vector(their_read(file, "xdirection")), [1, 2])  # its scripts skip scalars


@pytest.mark.parametrize("shape", [(3, 3), (4, 3)])
def test_our_surface_in_their_scripts(tmp_path, shape):
    xs, ys = np.linspace(-1, 1, shape[1]), np.linspace(0, 3, shape[0])
    loss = xs[None, :] + 10 * ys[:, None]
    loss[2, 1] = np.nan
    surface = Surface(xs, ys, {"train_loss": loss, "train_acc": 2 * loss}, "directions.h5")
    write_surface(tmp_path / "surface.h5", surface)
    x, y, z = their_contour(tmp_path / "surface.h5", "train_loss")
    assert loss[0, 0] == -1  # must not be read as a point that was not evaluated
    np.testing.assert_allclose(z, np.where(np.isnan(loss), -1, x + 10 * y), rtol=1e-15)
    read = read_surface(tmp_path / "surface.h5")
    assert read.directions == "directions.h5"
    assert read.values.keys() == {"train_loss", "train_acc"}
    np.testing.assert_allclose(read.values["train_loss"], loss, rtol=1e-15)
    np.testing.assert_array_equal(read.values["train_acc"], 2 * loss)
    np.testing.assert_array_equal(read.x, xs)
    np.testing.assert_array_equal(read.y, ys)


def test_our_line_in_their_scripts(tmp_path):
    xs = np.linspace(-1, 1, 5)
    write_surface(tmp_path / "line.h5", Surface(xs, None, {"train_loss": xs**2, "train_acc": 100 - xs}))
    with h5py.File(tmp_path / "line.h5") as file:  # plot_1D
        np.testing.assert_array_equal(file["train_loss"][:], file["xcoordinates"][:] ** 2)
        np.testing.assert_array_equal(100 - file["train_acc"][:], xs)
        assert "ycoordinates" not in file
    assert read_surface(tmp_path / "line.h5").y is None


@pytest.mark.parametrize("shape", [(3, 3), (4, 3), (2, 5)])
def test_their_surface(tmp_path, shape):
    xs, ys = np.linspace(-1, 1, shape[1]), np.linspace(0, 3, shape[0])
    their_crunch(tmp_path / "theirs.h5", xs, ys, lambda x, y: x + 10 * y + 5)
    surface = read_surface(tmp_path / "theirs.h5")
    expected = xs[None, :] + 10 * ys[:, None] + 5
    expected.ravel()[-2:] = np.nan
    np.testing.assert_array_equal(surface.values["train_loss"], expected)


def test_projections(tmp_path):
    path = tmp_path / "proj.h5"
    write_projection(path, Projection(np.arange(3.0), -np.arange(3.0), {"iteration": np.array([0, 4, 8])}))
    pyplot = pytest.importorskip("matplotlib.pyplot")
    with h5py.File(path) as file:  # plot_2D.plot_trajectory
        (line,) = pyplot.plot(file["proj_xcoord"], file["proj_ycoord"], marker=".")
        np.testing.assert_array_equal(line.get_xydata(), [(0, 0), (1, -1), (2, -2)])
    pyplot.close()
    projection = read_projection(path)
    np.testing.assert_array_equal(projection.x, [0, 1, 2])
    np.testing.assert_array_equal(projection.y, [0, -1, -2])
    np.testing.assert_array_equal(projection.more["iteration"], [0, 4, 8])


def test_their_projection(tmp_path):
    with h5py.File(tmp_path / "proj.h5", "w") as file:  # projection.project_trajectory
        file["proj_xcoord"], file["proj_ycoord"] = np.arange(3.0), -np.arange(3.0)
    projection = read_projection(tmp_path / "proj.h5")
    np.testing.assert_array_equal(projection.x, [0, 1, 2])
    np.testing.assert_array_equal(projection.y, [0, -1, -2])


def test_files_that_do_not_fit(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        their_write(file, "xdirection", [np.zeros(shape) for shape in [*SHAPES, (4,)]])
    with pytest.raises(
        InputError, match=r"expected 3 arrays in xdirection, .*, found 4: was it made with --dir_type states"
    ):
        read_directions(path, LAYOUT)
    path.unlink()
    with h5py.File(path, "w") as file:
        their_write(file, "xdirection", [np.zeros(shape) for shape in [SHAPES[0], (5,), SHAPES[2]]])
    with pytest.raises(InputError, match=r"expected shape \(4,\) of conv.bias in xdirection/1, found \(5,\)"):
        read_directions(path, LAYOUT)
    with pytest.raises(InputError, match="expected xcoordinates, found none"):
        read_surface(path)
    path.unlink()
    write_surface(path, Surface(np.zeros(2), np.zeros(3), {"train_loss": np.zeros((3, 2))}))
    with pytest.raises(InputError, match="expected a direction file with a group xdirection, found none"):
        read_directions(path, LAYOUT)
    with h5py.File(path, "r+") as file:
        file["other"] = np.zeros((4, 4))
    with pytest.raises(InputError, match=r"expected other of shape \(3, 2\), found \(4, 4\)"):
        read_surface(path)
    path.unlink()
    with h5py.File(path, "w") as file:
        file["proj_xcoord"], file["proj_ycoord"] = np.zeros((3, 2)), np.zeros(3)
    with pytest.raises(InputError, match=r"expected 1 dimensions in proj_xcoord, found shape \(3, 2\)"):
        read_projection(path)
    with h5py.File(path, "w") as file:
        file["proj_xcoord"], file["proj_ycoord"] = np.zeros(4), np.zeros(3)
    with pytest.raises(InputError, match="expected columns of one length, found several"):
        read_projection(path)
    path.write_text("no HDF5")
    for read in (lambda p: read_directions(p, LAYOUT), read_surface, read_projection):
        with pytest.raises(InputError, match="expected a readable HDF5 file, found: "):
            read(path)


def test_nothing_outside_the_file_is_read(tmp_path):
    trap = tmp_path / "trap.h5"
    os.mkfifo(trap)  # opening it blocks for ever
    ways = {
        "link": lambda f, name: f.__setitem__(name, h5py.ExternalLink(str(trap), "/x")),
        "soft": lambda f, name: f.__setitem__(name, h5py.SoftLink("/elsewhere")),
        "external": lambda f, name: f.create_dataset(name, (3,), "f8", external=[(str(trap), 0, 24)]),
        "virtual": lambda f, name: f.create_virtual_dataset(name, virtual()),
    }

    def virtual():
        layout = h5py.VirtualLayout((3,), "f8")
        layout[:] = h5py.VirtualSource(str(trap), "x", (3,), "f8")
        return layout

    for way, make in ways.items():
        with h5py.File(tmp_path / f"{way}.h5", "w") as file:
            file["proj_xcoord"] = np.zeros(3)
            make(file, "proj_ycoord")
        with pytest.raises(InputError, match=r"proj_ycoord in this file, found a (link|reference)"):
            read_projection(tmp_path / f"{way}.h5")


def test_bad_arguments_leave_nothing(tmp_path):
    path = tmp_path / "x.h5"
    with pytest.raises(InputError, match=r"expected xdirection of 96 elements, found shape \(3,\)"):
        write_directions(path, LAYOUT, Directions(np.zeros(3, np.float32)))
    with pytest.raises(InputError, match=r"expected loss of shape \(3, 2\), found \(2, 3\)"):
        write_surface(path, Surface(np.zeros(2), np.zeros(3), {"loss": np.zeros((2, 3))}))
    assert not list(tmp_path.iterdir())
    write_projection(path, Projection(np.zeros(1), np.zeros(1)))
    with pytest.raises(InputError, match="expected no such file, found one"):
        write_projection(path, Projection(np.zeros(1), np.zeros(1)))
