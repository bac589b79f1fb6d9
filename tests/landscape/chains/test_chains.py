"""Chain statistics against AR(1) chains and ArviZ, and checks of runs with known problems."""

import json
import re
import sys
import warnings

import numpy as np
import pytest

from lsam_hpc import InputError
from lsam_hpc.landscape.chains.diagnosis import are_samples, diagnose
from lsam_hpc.landscape.chains.mcmc import autocorrelation, mixing
from lsam_hpc.landscape.chains.statistics import Chains, Quantity, RankHealth, Spread, chains
from lsam_hpc.trajectory import CountSketch, Run, TrajectoryWriter
from tests.helpers.logs import attributes, exchange_row, step_row

LAYOUT = [("w", (40,))]
CONFIG = {"coupling": "kernel", "stiffness": 2.0, "temperature": 0.5, "period": 4, "lr": 0.1, "momentum": 0.0}


def ar1(phi, count, draws, seed=0):
    """Return AR(1) chains of variance 1, from their stationary distribution."""
    random = np.random.default_rng(seed)
    noise = random.standard_normal((count, draws)) * np.sqrt(1 - phi**2)
    x = np.empty((count, draws))
    x[:, 0] = random.standard_normal(count)
    for i in range(1, draws):
        x[:, i] = phi * x[:, i - 1] + noise[:, i]
    return x


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9, -0.3])
def test_ar1(phi):
    draws = ar1(phi, 4, 5000)
    result = mixing(draws)
    expected = draws.size * (1 - phi) / (1 + phi)
    # Geyer's estimate has a relative error of about sqrt(8 tau / N) = 9 % at phi 0.9 (Sokal 1997); allow 3 of them.
    assert result.ess == pytest.approx(expected, rel=3 * np.sqrt(8 * max(1, (1 + phi) / (1 - phi)) / draws.size))
    assert result.tau == pytest.approx(draws.size / result.ess)
    assert result.rhat == pytest.approx(1, abs=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    assert result.rhat == pytest.approx(float(arviz.rhat(draws)), rel=1e-12)
    for kind, value in (("mean", result.ess), ("bulk", result.ess_bulk), ("tail", result.ess_tail)):
        assert value == pytest.approx(float(arviz.ess(draws, method=kind)), rel=1e-12)
    lags = np.arange(6)
    np.testing.assert_allclose(autocorrelation(draws)[:6], phi**lags, atol=0.08)


def test_disagreeing_moving_and_single_chains():
    draws = ar1(0.5, 4, 1000)
    apart = mixing(draws + np.array([0, 0, 0, 3.0])[:, None])
    # Variance of the means 2.25, within chains 1: R-hat is about sqrt(1 + 2.25) without rank normalisation.
    assert 1.3 < apart.rhat < 1.9
    assert apart.drift < 1.05
    moving = mixing(draws + np.linspace(0, 5, 1000))
    assert moving.drift > 1.5
    alone = mixing(draws[:1])
    assert alone.rhat == alone.drift < 1.02
    assert mixing(draws[:1] + np.linspace(0, 5, 1000)).rhat > 1.5


def test_bad_draws(monkeypatch):
    assert all(np.isnan(mixing(np.ones((2, 50)))))
    with pytest.raises(InputError, match="chains: expected 20 draws of each or more, found shape"):
        mixing(np.ones((2, 19)))
    with pytest.raises(InputError, match="chains: expected finite draws, found 2 that are not"):
        mixing(np.array([[np.nan, np.inf] + [0.0] * 30]))
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(InputError, match=r"diagnose: expected the package arviz, found none: pip install 'lsam-hpc\["):
        mixing(ar1(0, 2, 50))


def write(path, ranks=3, rows=400, config=CONFIG, shift=0.0, **changes):
    """Write a run of AR(1) chains around a center at 0, with stationary variance T / lambda in each element."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    sketch = CountSketch(40, buckets=64)
    for rank in range(ranks):
        x = ar1(0.8, 40, rows, seed=rank).T * np.sqrt(0.25) + shift * (rank == 0)
        rank_rows = rows if rank != changes.get("short") else rows // 10
        with TrajectoryWriter(path, rank, LAYOUT, attributes(ranks), sketch=sketch) as writer:
            for i in range(rank_rows):
                slow = 4.0 if rank == changes.get("slow") else 1.0
                loss, lr = changes.get("loss", float((x[i] ** 2).sum())), changes.get("lr", lambda i: 0.1)(i)
                writer.step(**{**step_row(4 * i), "loss": loss, "lr": lr})
                writer.exchange(
                    **{
                        **exchange_row(4 * i),
                        "center_distance": float(np.linalg.norm(x[i])),
                        "staleness": i % 3,
                        "accepted": int(i % 20 > 0 or rank != changes.get("refused")),
                        "blocked": 0.001,
                        "seconds": 0.01,
                        "began": slow * 0.1 * i,
                    }
                )
                writer.sketch("sample", sketch(x[i].astype(np.float32)), 4 * i, i)
            writer.close({"steps": rank_rows} if rank != changes.get("short") else None)
    return path


def test_a_run_of_good_chains(tmp_path):
    run = Run(write(tmp_path / "run", rows=4000))
    statistics = chains(run)
    assert statistics.used == [0, 1, 2]
    assert [q.name for q in statistics.quantities] == [
        "component 1",
        "component 2",
        "component 3",
        "loss",
        "center distance",
    ]
    for quantity in statistics.quantities:
        assert quantity.draws.shape == (3, 2000)
        assert quantity.spacing == 4
        assert quantity.mixing.rhat < 1.02
    # 64 buckets keep 40 elements exactly: components are AR(1) chains of phi 0.8, tau 9 draws of 4 steps.
    assert statistics.quantities[0].tau == pytest.approx(36, rel=0.35)
    spread = statistics.spread
    assert spread.stiffness == 2
    assert spread.kernel == pytest.approx(np.sqrt(40 * 0.5 / 2))
    assert spread.measured == pytest.approx(spread.kernel, rel=0.03)
    assert spread.implied == pytest.approx(0.5, rel=0.06)
    np.testing.assert_array_equal(statistics.staleness, 3 * np.bincount(np.arange(4000) % 3))
    assert len(statistics.waits) == 12000
    verdicts = {verdict.name: verdict for verdict in diagnose(statistics)}
    assert {name: v.good for name, v in verdicts.items() if v.good is not True and name != "waits"} == {}
    assert are_samples(list(verdicts.values()))


def test_components_of_exact_samples_in_many_dimensions_mix_like_the_samples(tmp_path):
    # Principal components of the draws themselves would be the directions that happen to move slowly: of these exact
    # samples they have a third of the effective sample size, and R-hat of 1.05.
    size, draws, phi = 1000, 800, 0.8
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    sketch = CountSketch(size, buckets=512)
    for rank in range(2):
        x = ar1(phi, size, draws, seed=rank).T.astype(np.float32)
        with TrajectoryWriter(tmp_path, rank, [("w", (size,))], attributes(2), sketch=sketch) as writer:
            for i in range(draws):
                writer.step(**step_row(4 * i))
                writer.sketch("sample", sketch(x[i]), 4 * i, i)
            writer.close(None)
    components = [q for q in chains(Run(tmp_path)).quantities if q.name.startswith("component")]
    assert len(components) == 3
    expected = draws * (1 - phi) / (1 + phi)  # two chains, half of the rows
    # Relative standard error of Geyer's estimate: sqrt(8 tau / N) = 30 %; of the mean of three, 17 %. Allow 3 of them.
    assert np.mean([q.mixing.ess for q in components]) == pytest.approx(expected, rel=0.51)


def test_stiffness_of_elastic_and_restart_coupling(tmp_path):
    config = {**CONFIG, "coupling": "elastic", "pull": None, "momentum": 0.5, "temperature": 0.0}
    statistics = chains(Run(write(tmp_path / "run", config=config)))
    assert statistics.spread.stiffness == pytest.approx(0.9 / 3 * 0.5 / (0.1 * 4))
    verdict = diagnose(statistics)[2]
    assert verdict.good is None
    assert f"at T = {statistics.spread.implied:.2g}" in verdict.text
    config["coupling"] = "restart"
    restart = chains(Run(write(tmp_path / "other", config=config)))
    assert np.isnan(restart.spread.stiffness)
    assert "no kernel" in diagnose(restart)[2].text


def good(**changes):
    """Return statistics without any problem, with some fields changed."""
    ranks = [RankHealth(rank, "here", 1000, 100.0, 10.0, True, False, 250, 0, 0.01, 0) for rank in range(3)]
    quantity = Quantity("loss", ar1(0, 3, 500), 4.0, mixing(ar1(0, 3, 500)))
    fine = {
        "ranks": ranks,
        "used": [0, 1, 2],
        "start": 0.5,
        "quantities": [quantity],
        "explained": np.ones(1),
        "spread": Spread(1.0, 2.0, 0.05, 40),
        "staleness": np.array([500, 250]),
        "waits": np.full(750, 1e-3),
        "options": {},
    }
    return Chains(**{**fine, **changes})


def rank(number, **changes):
    base = {
        "rank": number,
        "host": f"node{number}",
        "steps": 1000,
        "rate": 100.0,
        "last": 10.0,
        "ended": True,
        "lost": False,
        "exchanges": 250,
        "refused": 0,
        "blocked": 0.01,
        "dropped": 0,
    }
    return RankHealth(**{**base, **changes})


def quantity(draws, name="loss"):
    return Quantity(name, draws, 4.0, mixing(draws))


APART = ar1(0, 3, 500) + np.array([0, 0, 3.0])[:, None]


@pytest.mark.parametrize(
    ("name", "changes", "value", "threshold", "words"),
    [
        ("agreement", {"draws": APART}, None, 1.01, "raise pull"),
        ("agreement", {"draws": ar1(0, 3, 500) + np.linspace(0, 3, 500)}, None, 1.01, "still move"),
        ("agreement", {"draws": np.ones((3, 50))}, None, 1.01, "do not move"),
        ("draws", {"draws": ar1(0.95, 3, 500)}, None, 300, "times as long"),
        ("temperature", {"spread": Spread(1.2, 2.0, 0.05, 40)}, 1.2, 1.1, "set the temperature"),
        ("staleness", {"staleness": np.array([0, 0, 0, 0, 0, 10])}, 2.5, 2.0, "lower momentum"),
        ("waits", {"ranks": [rank(0), rank(1, blocked=0.3)]}, 0.3, 0.1, "rank 1 for 30.0 % .* longer period"),
        ("waits", {"ranks": [rank(1, blocked=0.3)], "options": {"overlap": False}}, 0.3, 0.1, "--overlap"),
        ("speed", {"ranks": [rank(0), rank(1), rank(2, rate=40.0)]}, 0.4, 0.5, "slow: rank 2 on node2"),
        (
            "lost ranks",
            {"ranks": [rank(0), rank(1, lost=True, ended=False)]},
            1,
            0,
            r"rank 1 on node1 \(last row at 10",
        ),
        ("guard", {"ranks": [rank(0), rank(1, refused=25)]}, 0.05, 0.01, "5.00 % .* rank 1: its chain jumps"),
        ("log", {"ranks": [rank(0), rank(1, dropped=7)]}, 7, 0, "7 rows were lost, the disk was too slow"),
    ],
)
def test_each_problem_fails_its_check(name, changes, value, threshold, words):
    fine = {verdict.name: verdict for verdict in diagnose(good())}
    assert all(verdict.good for verdict in fine.values())
    assert are_samples(list(fine.values()))
    if "draws" in changes:
        changes = {"quantities": [quantity(changes["draws"])]}
    checks = diagnose(good(**changes))
    verdict = next(v for v in checks if v.name == name)
    assert verdict.good is False
    assert verdict.threshold == threshold
    if value is not None:
        assert verdict.value == pytest.approx(value)
    assert re.search(words, verdict.text)
    assert are_samples(checks) is (name not in ("agreement", "draws", "temperature"))


MOVING = ar1(0, 3, 500) + np.linspace(0, 3, 500)


@pytest.mark.parametrize(
    ("draws", "start", "constant_lr", "advice"),
    [
        (
            MOVING,
            0.5,
            False,
            "train longer at a constant learning rate, or leave out more of the beginning (--from 0.75)",
        ),
        (
            MOVING,
            0.75,
            None,
            "train longer at a constant learning rate, or leave out more of the beginning (--from 0.875)",
        ),
        (MOVING, 0.75, True, "train longer, or leave out more of the beginning (--from 0.875)"),
        (MOVING[:, ::13], 0.5, True, "train longer"),  # half of the 39 draws are too few
        (MOVING[:1], 0.5, True, "train longer, or leave out more of the beginning (--from 0.75)"),
        (ar1(0.8, 1, 400), 0.5, False, "train longer, or leave out more of the beginning (--from 0.75)"),
    ],
)
def test_advice_is_not_what_was_done_already(draws, start, constant_lr, advice):
    check = diagnose(good(start=start, constant_lr=constant_lr, used=[0], quantities=[quantity(draws)]))[0]
    assert check.good is False
    assert check.text.endswith(f": {advice}")


@pytest.mark.parametrize(
    ("lr", "schedule", "constant"),
    [
        (lambda i: 0.1, "cosine", True),
        (lambda i: 0.1 * min(1, i / 100), "cosine", True),  # the first half does not count
        (lambda i: 0.1 / (1 + i), "constant", False),
        (lambda i: np.nan, "constant", True),
        (lambda i: np.nan, "cosine", False),
        (lambda i: np.nan, None, None),
    ],
)
def test_a_constant_learning_rate_is_known_from_the_log_or_else_the_options(tmp_path, lr, schedule, constant):
    config = {**CONFIG, **({"lr_schedule": schedule} if schedule else {})}
    assert chains(Run(write(tmp_path / "run", rows=300, config=config, lr=lr))).constant_lr is constant


def test_the_kinds_of_effective_sample_size_are_named():
    check = diagnose(good())[1]
    draws = good().quantities[0].mixing
    assert check.value == min(draws.ess_bulk, draws.ess_tail)
    assert re.match(
        r"(bulk|tail) effective sample size of the loss is \d+ of 1500 draws \((bulk|tail) \d+\)", check.text
    )
    heavy = quantity(np.sign(ar1(0, 3, 500)) * np.exp(6 * np.abs(ar1(0.95, 3, 500, seed=9))))
    few = diagnose(good(quantities=[heavy]))[1]
    assert (few.good, few.value) == (False, heavy.mixing.ess_tail)
    assert few.text.startswith(
        f"tail effective sample size of the loss is {heavy.mixing.ess_tail:.0f} of 1500 draws (bulk"
    )


def test_one_chain_states_its_limits():
    draws = ar1(0, 1, 500)
    checks = diagnose(good(used=[0], ranks=[rank(0)], quantities=[quantity(draws)]))
    agreement = checks[0]
    assert agreement.good
    assert agreement.text.startswith("one chain: this compares its halves and cannot see other basins; R-hat of the")
    assert [v.name for v in checks if v.good is None] == ["staleness", "speed"]


def test_rejected_exchanges_and_a_short_chain(tmp_path):
    statistics = chains(Run(write(tmp_path / "run", short=2, refused=1)))
    assert statistics.used == [0, 1]
    assert statistics.ranks[1].refused == 20
    assert not statistics.ranks[2].ended
    verdicts = {verdict.name: verdict for verdict in diagnose(statistics)}
    assert verdicts["guard"].good is False
    assert "left out of the statistics: rank 2" in verdicts["lost ranks"].text


def test_a_rank_that_stops_writing_is_lost(tmp_path):
    path = write(tmp_path / "run", short=2)
    run = Run(path)
    # The writer stamps rows with its clock: move the times of rank 2 back by 100 s.
    real = run.log(2).table
    run.log(2).table = lambda name: {k: v - 100 if k == "time" else v for k, v in real(name).items()}
    statistics = chains(run)
    assert [r.rank for r in statistics.ranks if r.lost] == [2]


def test_bad_runs(tmp_path):
    with pytest.raises(InputError, match=r"--from: expected a share of the rows in \[0, 1\), found 1"):
        chains(Run(write(tmp_path / "a", rows=60)), 1)
    with pytest.raises(
        InputError, match=r"expected 20 sketches or more in each chain from 0\.5 of the run on, found 15"
    ):
        chains(Run(write(tmp_path / "b", rows=30)))
    with pytest.raises(InputError, match="found nan at step 0 of rank 0: lower lr"):
        chains(Run(write(tmp_path / "c", rows=60, loss=np.nan)))
    path = tmp_path / "empty"
    path.mkdir()
    (path / "config.json").write_text("{}")
    with TrajectoryWriter(path, 0, LAYOUT, attributes(1)):
        pass
    with pytest.raises(InputError, match="expected steps, found none: the run ended before its first"):
        chains(Run(path))
