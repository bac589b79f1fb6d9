"""Drawn figures: aspect, ticks, labels, legends and orientation, not pixels."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from lsam_hpc import InputError
from lsam_hpc.landscape.chains.mcmc import mixing
from lsam_hpc.landscape.chains.statistics import Chains, Quantity, RankHealth
from lsam_hpc.landscape.curvature.smoothed_density import Density
from lsam_hpc.landscape.figures.draw_chains import draw_chains, rank_counts
from lsam_hpc.landscape.figures.draw_curvature import draw_layers, draw_sharpness, draw_spectra
from lsam_hpc.landscape.figures.draw_path import draw_matrix
from lsam_hpc.landscape.figures.draw_space import draw_space
from lsam_hpc.landscape.figures.draw_surface import draw_surface
from lsam_hpc.landscape.figures.draw_tracks import draw_tracks
from lsam_hpc.landscape.figures.figures import figure, save
from lsam_hpc.landscape.figures.scales import LOG, Scale, levels, log_axis, number
from lsam_hpc.landscape.figures.steps import label_steps
from lsam_hpc.landscape.formats.loss_landscape import Surface
from lsam_hpc.landscape.geometry.barriers import Matrix
from lsam_hpc.landscape.geometry.projection import plane, signs
from lsam_hpc.landscape.geometry.tracks import Track, from_sketches, from_snapshots
from lsam_hpc.trajectory import Run
from tests.helpers.figures import check, height, overlapping, shown, tick_labels
from tests.helpers.landscapes import write_run
from tests.helpers.mpis import ROOT

X, Y = np.linspace(-2, 2, 17), np.linspace(-1, 1, 9)
BOWL = Surface(X, Y, {"loss": 1e-3 + (X**2 + 9 * Y[:, None] ** 2), "error": 10 * (X**2 + Y[:, None] ** 2)})
LABELS = ("principal component 1 (distance; 90.0 % of variance)", "principal component 2 (distance; 5.0 % of variance)")


@pytest.fixture
def drawn(monkeypatch):
    """Keep each figure that is saved, with its layout; nothing is rendered."""
    figures = []

    def savefig(self, path, **_):
        self.draw_without_rendering()
        figures.append(self)
        path.touch()

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


@pytest.mark.parametrize(
    ("values", "texts"),
    [((1e-3, 0.01, 0.1, 1, 20, 1000), "1e-3 1e-2 0.1 1 20 1e3"), ((0, 2.5e-7, -0.05), "0 2.5e-7 -5e-2")],
)
def test_numbers(values, texts):
    assert " ".join(map(number, values)) == texts


@pytest.mark.parametrize("limits", [(1e-12, 1e12), (1e-4, 3), (3e-3, 5e-2), (0.2, 0.3), (0.9996, 1.0004), (1, 10)])
def test_ticks_of_logarithmic_axes(tmp_path, drawn, limits):
    with figure(3, 3) as (drawing, axes):
        axes.set(xlim=limits, ylim=limits, xlabel="radius rho", ylabel="loss")
        log_axis(axes.xaxis)
        log_axis(axes.yaxis)
        save(drawing, tmp_path / "a.png")
    check(drawn[0])
    assert len(tick_labels(axes.xaxis)) <= 7
    assert axes.get_xlabel() == f"radius rho, {LOG}"


@pytest.mark.parametrize(("low", "high"), [(1e-3, 2), (1e-9, 1e6), (0.1, 0.2), (5, 5), (1e-3, 40)])
@pytest.mark.parametrize("log", [None, True, False])
def test_levels_are_round_and_cover_the_values(low, high, log):
    at, logarithmic = levels([np.array([low, np.nan, high])], scale=Scale(log))
    assert at[0] <= low
    assert high <= at[-1]
    assert 2 <= len(at) <= 30
    assert (np.diff(at) > 0).all()
    assert logarithmic == (high / low > 30 if log is None else log)
    chosen, _ = levels([np.array([low, high])], scale=Scale(limits=(0.5, 4), levels=4, logarithmic=log))
    np.testing.assert_allclose(chosen[[0, -1]], [0.5, 4])
    np.testing.assert_array_equal(levels([at], scale=Scale(levels=(3.0, 1.0, 2.0)))[0], [1, 2, 3])


def test_a_surface_has_equal_axes_labels_and_a_bar_as_high_as_the_plot(tmp_path, drawn):
    marks = {"center": np.zeros(2), "far away": np.array([50.0, 0.0])}
    draw_surface(BOWL, tmp_path / "a.png", LABELS, marks, "run, around center, train data, 500 images")
    (drawing,) = drawn
    check(drawing)
    for axes in drawing.axes:
        box = axes.get_window_extent()
        assert box.width / box.height == pytest.approx(2, rel=0.01)  # 4 wide, 2 high
        np.testing.assert_allclose([*axes.get_xlim(), *axes.get_ylim()], [-2, 2, -1, 1])
        written = [text for text in axes.texts if text.get_visible()]
        assert len(written) >= 2  # contours
        (bar,) = axes.child_axes
        np.testing.assert_allclose(height(bar), height(axes), atol=1)
    assert {bar.get_ylabel() for axes in drawing.axes for bar in axes.child_axes} == {f"loss, {LOG}", "error (%)"}
    assert [text.get_text() for text in drawing.legends[0].get_texts()] == ["center"]  # not what is outside
    # Nothing is empty between title and plots, and between plots and legend.
    title, lowest = drawing.texts[0].get_window_extent(), min(axes.get_tightbbox().y0 for axes in drawing.axes)
    assert title.y0 - max(axes.get_tightbbox().y1 for axes in drawing.axes) < 0.3 * drawing.dpi
    assert lowest - drawing.legends[0].get_window_extent().y1 < 0.3 * drawing.dpi


def test_scales_of_a_surface(tmp_path, drawn):
    for scale in (Scale(), Scale(False), Scale(True, (0.1, 1.0)), Scale(False, levels=(1.0, 2.0, 5.0))):
        draw_surface(BOWL, tmp_path / "a.svg", LABELS, scale=scale)
    norms = [drawing.axes[0].collections[0].norm for drawing in drawn]
    assert [type(norm).__name__ for norm in norms] == ["LogNorm", "Normalize", "LogNorm", "Normalize"]
    assert [(norm.vmin, norm.vmax) for norm in norms[2:]] == [(0.1, 1.0), (1.0, 5.0)]
    np.testing.assert_array_equal(drawn[3].axes[0].collections[0].levels[-3:], [1, 2, 5])
    line = Surface(X, None, {"loss": X**2})
    with pytest.raises(InputError, match="--static-3d: expected a surface on a plane"):
        draw_space(line, tmp_path / "a.png", LABELS)
    with pytest.raises(InputError, match="--log: expected values > 0, found 0: name two positive --limits"):
        levels([X**2], scale=Scale(True))
    draw_surface(line, tmp_path / "a.png", LABELS, {"center": np.zeros(1)}, scale=Scale(True))
    assert drawn[-1].axes[0].get_yscale() == "log"


def test_a_surface_in_space_has_its_lowest_corner_in_front(tmp_path, drawn):
    tilted = Surface(X, Y, {"loss": 5 - X + 2 * Y[:, None]})
    draw_space(tilted, tmp_path / "a.png", LABELS, {"center": np.zeros(2)}, "run", scale=Scale(False))
    (axes,) = drawn[0].axes
    azimuth = np.deg2rad(axes.azim)
    assert np.cos(azimuth) > 0  # x = 2, y = -1
    assert np.sin(azimuth) < 0


@pytest.mark.parametrize(("ranks", "states"), [(1, 12), (2, 6), (2, 9), (3, 12)])
def test_snapshots_and_sketches_are_drawn_the_same_way_round(tmp_path, ranks, states):
    run = Run(write_run(tmp_path / "run", ranks, states, sketches=True))  # sketches of 15 elements are exact
    one, other = from_snapshots(run), from_sketches(run)
    for rank in run.ranks:
        np.testing.assert_allclose(one.ranks[rank].sample, other.ranks[rank].sample, atol=1e-4)
        np.testing.assert_allclose(plane(run).coordinates[rank], one.ranks[rank].sample, atol=1e-4)
    moved = np.concatenate([track.sample for track in one.ranks.values()])
    moved = moved - np.mean([track.sample[0] for track in one.ranks.values()], 0)
    assert (moved.max(0) >= -moved.min(0)).all()


def test_signs_point_to_the_farthest_state():
    np.testing.assert_array_equal(
        signs([np.array([[0, 0], [1, -3], [-2.0, 2]]), np.array([[0, 0], [1, 1.0]])]), [-1, -1]
    )


@pytest.mark.parametrize("source", [from_snapshots, from_sketches])
def test_tracks(tmp_path, drawn, source):
    run = Run(write_run(tmp_path / "run", 3, 12, sketches=True))
    tracks = source(run, marks={"checkpoint center": run.snapshot(0, -1)})
    logged = {rank: (run.steps(rank)["total_iteration"], run.steps(rank)["loss"]) for rank in run.ranks}
    draw_tracks(tracks, tmp_path / "a.png", logged, title="run, 3 ranks")
    (drawing,) = drawn
    check(drawing)
    surface = drawing.axes[0]
    assert surface.get_aspect() == 1
    lines = {line.get_label(): line for line in surface.lines}
    for rank in range(3):  # seen on the center, which is broader and lets them through
        assert lines[f"rank {rank}"].get_zorder() > lines["center"].get_zorder()
        assert lines[f"rank {rank}"].get_linewidth() < lines["center"].get_linewidth()
    assert lines["center"].get_alpha() < 0.5
    steps = [int(text.get_text()) for text in surface.texts]
    total = tracks.ranks[0].total
    assert {total[0], total[-1]} <= set(steps) <= set(total.tolist())
    assert not overlapping(list(surface.texts))
    names = [text.get_text() for text in drawing.legends[0].get_texts()]
    expected = ["center", "rank 0", "rank 1", "rank 2", "checkpoint center", "initial state", "last state"]
    assert names == [*expected, "exchange: sample to center", "steps of all ranks, at rank 0"]


def test_labels_of_steps_do_not_cover_each_other(tmp_path, drawn):
    steps = np.arange(30)
    at = np.stack([np.minimum(0.01 * steps, 0.2), 0 * steps], 1)  # many states, and labels, at one place
    at[-1] = 1, 1
    zeros = np.zeros(30)
    track = Track(steps, 100 * steps, steps, at, zeros, at, zeros)
    with figure(3, 3) as (drawing, axes):
        axes.plot(*at.T)
        label_steps(axes, track, of_each=True)
        save(drawing, tmp_path / "a.png")
    assert not overlapping(list(axes.texts))
    assert {"0", "2900"} <= {text.get_text() for text in axes.texts}
    assert len(axes.texts) < 12


def test_a_flat_surface_leaves_no_void(tmp_path, drawn):
    flat = Surface(X, Y / 10, {"loss": BOWL.values["loss"]})
    draw_surface(flat, tmp_path / "a.png", LABELS, {"center": np.zeros(2)}, "run")
    (drawing,) = drawn
    box = drawing.axes[0].get_tightbbox()
    assert drawing.texts[0].get_window_extent().y0 - box.y1 < 0.3 * drawing.dpi
    assert box.y0 - drawing.legends[0].get_window_extent().y1 < 0.3 * drawing.dpi


def test_tracks_on_a_surface(tmp_path, drawn):
    tracks = from_snapshots(Run(write_run(tmp_path / "run", 10, 6)))
    grid = np.linspace(-9, 9, 7)
    background = Surface(grid, grid / 3, {"loss": 1 + grid**2 + grid[:, None] ** 2})
    draw_tracks(tracks, tmp_path / "a.pdf", {}, background=background, title="run, 10 ranks, train data, 30 images")
    (drawing,) = drawn
    check(drawing)
    box = drawing.axes[0].get_window_extent()
    assert box.width / box.height == pytest.approx(3, rel=0.01)
    assert "10 ranks" in [text.get_text() for text in drawing.legends[0].get_texts()]


@pytest.mark.parametrize(("count", "spread"), [(2, 0.1), (3, 4.0), (30, 1.0)])
def test_layers(tmp_path, drawn, count, spread):
    chance = np.random.default_rng(0)
    names = [f"encoder.layers.{i}.self_attn.in_proj" for i in range(count)]
    tops = {matrix: chance.lognormal(0, spread, count) for matrix in ("hessian", "ggn")}
    draw_layers(names, tops, {name: 1e-4 * values for name, values in tops.items()}, tmp_path / "a.png", "run")
    check(drawn[0])
    assert [text.get_text() for text in tick_labels(drawn[0].axes[0].yaxis)] == names


def test_densities_stand_on_the_axis_and_are_not_cut(tmp_path, drawn):
    density = Density(np.array([-0.4, 0, 0.5, 1, 3]), np.array([1e-5, 0.9, 0.09, 0.01, 1e-4]))
    spectra = {matrix: (np.array([3.0, 1.0]), density) for matrix in ("hessian", "ggn")}
    draw_spectra(spectra, tmp_path / "a.png", "run, at center, train data, 300 images")
    check(drawn[0])
    for axes in drawn[0].axes:
        curve, (low, high) = axes.lines[0].get_ydata(), axes.get_ylim()
        assert curve[0] == curve[-1] == curve.min() == low
        assert curve.max() < high
        for node, weight in zip(density.nodes, density.weights, strict=True):
            peak = curve[np.abs(axes.lines[0].get_xdata() - node).argmin()]
            assert peak == pytest.approx(weight / (density.width * np.sqrt(2 * np.pi)), rel=0.05)
            assert peak >= 2 * low


def test_sharpness_and_barriers(tmp_path, drawn):
    rho = np.array([0.05, 0.1, 0.2, 0.4])
    states = {"center": (rho, rho**2, 0.1 * rho**2), "0": (rho, 2 * rho**2, np.full(4, np.nan))}
    draw_sharpness({f"average case, L2 {i}": states for i in range(3)}, tmp_path / "a.png", "run")
    names = ("center", *map(str, range(8)))
    loss = np.random.default_rng(0).random((9, 9, 5)) + np.array([0, 1, 2, 1, 0])
    draw_matrix(Matrix(names, np.linspace(0, 1, 5), (loss + loss.transpose(1, 0, 2)), loss), tmp_path / "b.png", "run")
    draw_matrix(Matrix(names, np.linspace(0, 1, 5), 1 + 1e-9 * loss, loss), tmp_path / "c.png", "run")
    for drawing in drawn:
        check(drawing)
    heights, lines = drawn[1].axes
    assert heights.get_aspect() == 1
    np.testing.assert_allclose(height(heights.child_axes[0]), height(heights), atol=1)
    assert lines.get_ylabel() == "loss"
    assert drawn[2].axes[1].get_ylabel() == "loss - 1"
    assert max(line.get_ydata().max() for line in drawn[2].axes[1].lines) < 1e-8


def chain_statistics(ranks):
    draws = np.random.default_rng(0).standard_normal((ranks, 200)).cumsum(1)
    named = {"loss": draws, "even": 1 + 0 * draws}
    quantities = [Quantity(name, values, 2.0, mixing(values)) for name, values in named.items()]
    health = {"host": "a", "steps": 200, "last": 1.0, "ended": True, "lost": False, "exchanges": 9, "refused": 0}
    each = [RankHealth(rank=rank, rate=100.0, blocked=0.1, dropped=0, **health) for rank in range(ranks)]
    how = {"explained": np.empty(0), "spread": None, "options": {}}
    how |= {"staleness": np.array([500, 30, 1]), "waits": np.array([1e-4, 0.02])}
    return Chains(ranks=each, used=list(range(ranks)), start=0.5, quantities=quantities, **how)


@pytest.mark.parametrize("ranks", [1, pytest.param(17, marks=pytest.mark.slow("many axes and bars"))])
def test_chains(tmp_path, drawn, ranks):
    draw_chains(chain_statistics(ranks), tmp_path / "a.png", "run, chains")
    (drawing,) = drawn
    check(drawing)
    for axes in shown(drawing):
        for axis, name in ((axes.xaxis, "rank"), (axes.yaxis, "chain of rank")):
            if axis.get_label_text() == name:
                labels = [text.get_text() for text in tick_labels(axis)]
                assert labels
                assert all(label.isdecimal() and int(label) < ranks for label in labels)


@pytest.mark.parametrize("n", [40, 256])
def test_rank_plots_are_those_of_arviz(n):
    import arviz
    import matplotlib

    matplotlib.use("agg")
    draws = np.random.default_rng(0).standard_normal((3, n)) + np.array([[0], [0], [1]])
    draws[:, ::7] = 0.5  # ties
    axes = arviz.plot_rank({"x": draws})
    heights = np.array([bar.get_height() for bar in np.ravel(axes)[0].patches]).reshape(3, -1)
    edges, counts = rank_counts(draws)
    np.testing.assert_allclose(counts / counts.sum(1, keepdims=True), heights / heights.sum(1, keepdims=True))
    np.testing.assert_allclose(np.diff(edges), np.ravel(axes)[0].patches[0].get_width())
    np.testing.assert_array_equal(counts.sum(1), n)


def test_all_titles_are_headings():
    """A title is broken into lines by one function, so that none is cut or wider than its figure."""
    folder = ROOT / "lsam_hpc" / "landscape" / "figures"
    assert [file.name for file in folder.glob("*.py") if "suptitle(" in file.read_text()] == ["figures.py"]
