"""Tracks of chains and center against numpy's SVD of all their states."""

import numpy as np
import pytest

from lsam_hpc import InputError
from lsam_hpc.landscape.figures import draw_tracks as drawing
from lsam_hpc.landscape.geometry import tracks
from lsam_hpc.landscape.geometry.axes import through
from lsam_hpc.landscape.geometry.tracks import center_tracks, from_sketches, from_snapshots
from lsam_hpc.trajectory import CountSketch, Run, TrajectoryWriter
from tests.helpers.landscapes import LAYOUT, SIZE, walks, write_run
from tests.helpers.logs import attributes

RANKS, STATES = 2, 6


def svd():
    """Return the principal directions of the samples, shape (2, P), the explained shares, and the origin."""
    matrix = walks(RANKS, STATES).reshape(-1, SIZE).astype(np.float64)
    _, values, vectors = np.linalg.svd(matrix - matrix.mean(0))
    return vectors[:2], (values**2 / (values**2).sum())[:2], matrix[-1]


def check(result):
    directions, explained, origin = svd()
    np.testing.assert_allclose(result.explained, explained, rtol=1e-6)
    for rank, samples in enumerate(walks(RANKS, STATES).astype(np.float64)):
        track = result.ranks[rank]
        np.testing.assert_array_equal(track.iteration, np.arange(STATES))
        np.testing.assert_array_equal(track.total, RANKS * np.arange(STATES) + rank)
        for states, at, off in ((samples, track.sample, track.off), (samples / 2, track.center, track.center_off)):
            offsets = states - origin
            expected = offsets @ directions.T
            np.testing.assert_allclose(np.abs(at), np.abs(expected), atol=1e-5)  # a direction's sign is free
            residual = offsets - expected @ directions
            np.testing.assert_allclose(off, np.linalg.norm(residual, axis=1), atol=1e-5)


def test_from_snapshots(tmp_path):
    result = from_snapshots(Run(write_run(tmp_path / "run", RANKS, STATES)), marks={"last": walks()[1, -1]})
    check(result)
    assert result.source == "snapshots"
    np.testing.assert_allclose(result.marks["last"], 0, atol=1e-6)
    assert result.marks_off["last"] == pytest.approx(0, abs=1e-6)


def test_from_exact_sketches(tmp_path):
    # 15 elements in 32 buckets: a vector with no more elements than buckets is sketched exactly.
    result = from_sketches(Run(write_run(tmp_path / "run", RANKS, STATES, False, True)), {"last": walks()[1, -1]})
    check(result)
    assert (result.source, result.axes) == ("sketches", None)
    np.testing.assert_allclose(result.marks["last"], 0, atol=1e-6)


def test_a_chosen_plane(tmp_path):
    states = walks()
    names = ["0@0", "0@3", "1@5"]
    axes = through([states[0, 0], states[0, 3], states[1, 5]], names)
    result = from_snapshots(Run(write_run(tmp_path / "run")), axes)
    assert result.explained is None
    for name, (rank, i) in zip(names, ((0, 0), (0, 3), (1, 5)), strict=True):
        np.testing.assert_allclose(result.ranks[rank].sample[i], result.marks[name], atol=1e-5)
        assert result.ranks[rank].off[i] == pytest.approx(0, abs=1e-5)
    assert result.ranks[1].off[0] > 0.1


def test_long_tracks_are_subsampled(tmp_path, monkeypatch):
    monkeypatch.setattr(tracks, "MOST_SKETCHES", 3)
    result = from_sketches(Run(write_run(tmp_path / "run", RANKS, STATES, False, True)))
    assert [list(track.iteration) for track in result.ranks.values()] == [[0, 2, 5], [0, 2, 5]]


def test_states_without_a_center_and_without_steps(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.json").write_text("{}")
    with TrajectoryWriter(path, 0, LAYOUT, attributes(), sketch=CountSketch(SIZE, buckets=32)) as writer:
        for i, vector in enumerate(walks()[0]):
            writer.sketch("sample", writer.sketcher(vector), i, i)
    track = from_sketches(Run(path)).ranks[0]
    assert np.isnan(track.center).all()
    np.testing.assert_array_equal(track.total, np.arange(STATES))


def write_center(path, reads, config="{}"):
    """Write a run whose center moves by (2, 1, 0, ...) per version; reads: (step, total step, version) by rank."""
    path.mkdir()
    (path / "config.json").write_text(config)
    chance, velocity = np.random.default_rng(0), np.zeros(SIZE, np.float32)
    velocity[:2] = 2, 1
    for rank, rows in enumerate(reads):
        sketch = CountSketch(SIZE, buckets=32)
        with TrajectoryWriter(path, rank, LAYOUT, attributes(len(reads)), sketch=sketch) as writer:
            for step, total, version in rows:
                writer.step(iteration=step, total_iteration=total, loss=1.0)
                sample = np.concatenate([chance.standard_normal(2), np.zeros(SIZE - 2)]).astype(np.float32)
                for state, value in (("sample", sample), ("center", abs(version) * velocity)):
                    writer.sketch(state, sketch(value), step, max(version, -1))
    return path


# Rank 1 is slow: it staged its samples early, and read the center late.
READS = [[(0, 0, 0), (1, 2, 1), (2, 4, 2), (3, 6, 5)], [(0, 1, 3), (1, 3, 4), (2, 5, 6)]]


def test_the_center_is_in_the_order_of_its_versions(tmp_path):
    result = from_sketches(Run(write_center(tmp_path / "run", READS)))
    (center,) = center_tracks(result)
    np.testing.assert_array_equal(center.version, np.arange(7))
    steps = np.diff(center.at, axis=0)
    np.testing.assert_allclose(steps, np.tile(steps[0], (6, 1)), atol=1e-5)  # straight on, never backwards
    assert np.linalg.norm(steps[0]) == pytest.approx(5**0.5, rel=1e-6)
    # Version 1 was read at step 2, but version 3, which comes later, at step 1.
    np.testing.assert_array_equal(center.total, [0, 1, 1, 1, 3, 5, 5])


def test_a_version_that_was_not_logged_follows_the_read_before_it(tmp_path):
    reads = [[(0, 0, 0), (1, 2, 1), (2, 4, -2), (3, 6, 5)], READS[1]]
    (center,) = center_tracks(from_sketches(Run(write_center(tmp_path / "run", reads))))
    np.testing.assert_array_equal(center.version, [0, 1, 3, 4, -1, 5, 6])


def test_centers_of_gossip_are_not_one(tmp_path):
    run = Run(write_center(tmp_path / "run", READS, '{"topology": "gossip"}'))
    first, second = center_tracks(from_sketches(run))
    np.testing.assert_array_equal(first.version, [0, 1, 2, 5])
    np.testing.assert_array_equal(second.version, [3, 4, 6])


def test_the_figure_draws_the_center_forwards(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(drawing, "save", lambda figure, path: drawn.extend(figure.axes))
    result = from_sketches(Run(write_center(tmp_path / "run", READS)))
    drawing.draw_tracks(result, tmp_path / "none.png", {})
    plane, _, off = drawn
    (line,) = [line for line in plane.lines if line.get_label() == "center"]
    np.testing.assert_array_equal(np.stack(line.get_data(), 1), center_tracks(result)[0].at)
    (distance,) = [line for line in off.lines if line.get_color() == drawing.CENTER]
    np.testing.assert_array_equal(distance.get_xdata(), center_tracks(result)[0].total)


def test_bad_input(tmp_path):
    run = Run(write_run(tmp_path / "run", snapshots=False))
    with pytest.raises(InputError, match=r"expected 3 sketches of the samples or more .* found 0: train with"):
        from_sketches(run)
    with pytest.raises(InputError, match=r"expected 3 snapshots of the sample or more .* found 0: snapshots are taken"):
        from_snapshots(run)
    with pytest.raises(InputError, match="expected snapshots of the samples, found none: train with"):
        from_snapshots(run, through(walks()[0, :3], ["a", "b", "c"]))
