"""The plane of a run's snapshots against numpy's SVD and scikit-learn's PCA of the whole matrix."""

import numpy as np
import pytest

from lsam_hpc import InputError
from lsam_hpc.landscape import plane
from lsam_hpc.landscape.geometry import projection
from lsam_hpc.trajectory import Run, Snapshots, TrajectoryWriter, schema
from tests.helpers.logs import attributes

SIZE = 300


def write(path, states, dtype="float32"):
    """Write a run whose ranks have these samples, {rank: (states, P)}."""
    path.mkdir()
    (path / "config.json").write_text("{}")
    for rank, vectors in states.items():
        layout = [("w", (vectors.shape[1],))]
        with TrajectoryWriter(path, rank, layout, attributes(len(states)), snapshots=Snapshots(dtype=dtype)) as writer:
            for i, vector in enumerate(vectors):
                writer.snapshot("sample", vector, 10 * i)
    return Run(path)


def walk(count, size=SIZE, seed=0):
    return np.random.default_rng(seed).standard_normal((count, size)).cumsum(0).astype(np.float32)


@pytest.mark.parametrize("chunk", [schema.SNAPSHOT_ELEMENTS, 128])
def test_plane_equals_pca(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(schema, "SNAPSHOT_ELEMENTS", chunk)
    monkeypatch.setattr(projection, "WIDTH", 50)
    states = {0: walk(7), 1: walk(5, seed=1)}
    fitted = plane(write(tmp_path / "run", states))
    matrix = np.concatenate(list(states.values())).astype(np.float64)
    _, values, vectors = np.linalg.svd(matrix - matrix.mean(0), full_matrices=False)
    np.testing.assert_allclose(fitted.singular_values[:11], values[:11], rtol=1e-9)
    np.testing.assert_allclose(np.abs((fitted.directions * vectors[:2]).sum(1)), 1, atol=1e-6)
    np.testing.assert_allclose(fitted.directions @ fitted.directions.T, np.eye(2), atol=1e-6)
    np.testing.assert_array_equal(fitted.origin, states[1][-1])
    for rank, vectors in states.items():
        offsets = vectors.astype(np.float64) - fitted.origin
        np.testing.assert_allclose(fitted.coordinates[rank], offsets @ fitted.directions.T, atol=1e-4)
        residual = offsets - offsets @ fitted.directions.T @ fitted.directions
        np.testing.assert_allclose(fitted.distances[rank], np.linalg.norm(residual, axis=1), atol=1e-4)


def test_explained_variance_equals_that_of_scikit_learn(tmp_path):
    decomposition = pytest.importorskip("sklearn.decomposition")
    states = walk(9)
    pca = decomposition.PCA(n_components=2).fit(states.astype(np.float64))
    fitted = plane(write(tmp_path / "run", {0: states}))
    np.testing.assert_allclose(fitted.explained, pca.explained_variance_ratio_, rtol=1e-9)


def test_states_in_a_plane_have_distance_0(tmp_path):
    # A circle of radius 3 far from zero: both directions explain half, and nothing is off the plane.
    angle = 2 * np.pi * np.arange(8) / 8
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((SIZE, 2)))[0].T
    states = (100 + 3 * np.stack([np.cos(angle), np.sin(angle)], 1) @ basis).astype(np.float32)
    fitted = plane(write(tmp_path / "run", {0: states}))
    np.testing.assert_allclose(fitted.explained, [0.5, 0.5], atol=1e-4)
    np.testing.assert_allclose(fitted.distances[0], 0, atol=1e-3)
    radius = np.linalg.norm(fitted.coordinates[0] - fitted.coordinates[0].mean(0), axis=1)
    np.testing.assert_allclose(radius, 3, atol=1e-4)


def test_some_ranks(tmp_path):
    run = write(tmp_path / "run", {0: walk(4), 1: walk(4, seed=1), 2: walk(4, seed=2)})
    fitted = plane(run, ranks=[0, 1])
    assert list(fitted.coordinates) == [0, 1]
    np.testing.assert_array_equal(fitted.origin, walk(4, seed=1)[-1])


def bad(states, rank, row):
    states[rank][row, 3] = np.nan
    return states


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ({0: walk(2)}, r"expected 3 snapshots of the sample or more to lay a plane through, found 2"),
        ({0: np.ones((4, 5), np.float32)}, r"that span a plane, found all on a line"),
        ({0: np.outer(np.arange(4), np.ones(5)).astype(np.float32)}, r"that span a plane, found all on a line"),
        (bad({0: walk(4), 1: walk(4)}, 0, 2), r"expected finite snapshots of the sample, found row 2 of rank 0"),
        (bad({0: walk(4), 1: walk(4)}, 1, 3), r"expected finite snapshots of the sample, found row 3 of rank 1"),
        ({0: walk(4), 1: walk(4, 9)}, r"expected one layout in all ranks' files, found several"),
    ],
)
def test_states_that_span_no_plane(tmp_path, states, message):
    with pytest.raises(InputError, match=message):
        plane(write(tmp_path / "run", states))


def test_a_run_without_snapshots(tmp_path):
    run = write(tmp_path / "run", {0: walk(4)})
    with pytest.raises(InputError, match=r"expected 3 snapshots of the center or more .*found 0"):
        plane(run, "center")


def damage(path, row):
    """Change one number of a snapshot, through HDF5."""
    import h5py

    with h5py.File(path, "r+", libver="latest") as file:
        file["snapshot/sample/values"][row, 3] = 77


def test_damaged_snapshots(tmp_path):
    write(tmp_path / "run", {0: walk(5)})
    damage(tmp_path / "run" / "rank-0000.h5", 1)
    with pytest.raises(InputError, match=r"snapshot/sample: expected whole rows, found 1 damaged from row 1 on"):
        plane(Run(tmp_path / "run"))
    fitted = plane(Run(tmp_path / "run", partial=True))
    assert fitted.rows == {0: [0, 2, 3, 4]}
    kept = walk(5)[[0, 2, 3, 4]].astype(np.float64)
    values = np.linalg.svd(kept - kept.mean(0), compute_uv=False)
    np.testing.assert_allclose(fitted.singular_values[:3], values[:3], rtol=1e-9)
