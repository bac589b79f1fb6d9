"""Predict what a simulation would say, with error bars from the chains of LSAM.

    mpirun -n 2 python -m mpi4py docs/examples/oscillator.py           # about two minutes on two cores
    python docs/examples/oscillator.py --tiny                          # seconds, one rank; the numbers mean nothing

A driven, damped oscillator, x'' + 2 zeta x' + x = cos(omega t), is simulated for some omega and zeta. A network learns
the amplitude of its steady state. Frequencies above 1.2 rad/s are held out: there it can only guess, and should say so.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from mpi4py import MPI
from torch import Tensor, nn

from lsam_hpc import LSAM
from lsam_hpc.rma import barrier
from lsam_hpc.rundir import open_log
from lsam_hpc.trajectory import Run

comm = MPI.COMM_WORLD
NOISE = 0.15  # m, standard deviation of a measurement; known
RANGES = {"in range": (0.4, 1.2), "shifted": (1.2, 1.8)}  # omega, rad/s
POINTS, MEMBERS = 128, 8  # training data; networks in the ensemble of independent trainings
RATE = 3e-3  # learning rate of training, which falls to 0


def amplitude(omega: np.ndarray, zeta: np.ndarray, seconds: float = 100.0, step: float = 0.05) -> np.ndarray:
    """Simulate oscillators side by side (Runge-Kutta, fourth order) and return their steady amplitudes in m."""

    def slope(t: float, state: np.ndarray) -> np.ndarray:
        x, v = state
        return np.stack([v, np.cos(omega * t) - 2 * zeta * v - x])

    state, largest = np.zeros((2, len(omega))), np.zeros(len(omega))
    for t in np.arange(0, seconds, step):
        a = slope(t, state)
        b = slope(t + step / 2, state + step / 2 * a)
        c = slope(t + step / 2, state + step / 2 * b)
        d = slope(t + step, state + step * c)
        state = state + step / 6 * (a + 2 * b + 2 * c + d)
        if t > seconds - 20:  # more than a period of the slowest; the start has decayed by exp(-8)
            largest = np.maximum(largest, np.abs(state[0]))
    return largest


def inputs(omega: np.ndarray, zeta: np.ndarray) -> Tensor:
    """Return the network's inputs, shape (count, 2), about -1 to 1 over the training range."""
    return torch.from_numpy(np.stack([(omega - 0.8) / 0.4, (zeta - 0.25) / 0.15], 1)).float()


def simulate(count: int, omegas: tuple[float, float], seed: int) -> tuple[Tensor, Tensor]:
    """Return inputs, shape (count, 2), and measured amplitudes in m, shape (count, 1)."""
    random = np.random.default_rng(seed)
    omega, zeta = random.uniform(*omegas, count), random.uniform(0.1, 0.4, count)
    measured = torch.from_numpy(amplitude(omega, zeta) + random.normal(0, NOISE, count)).float()
    return inputs(omega, zeta), measured[:, None]


def network(seed: int = 0) -> nn.Module:
    """Return a network from the inputs to the amplitude in m."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the negative log-likelihood of the data per point, without its constant."""
    return ((model(x) - y) ** 2).mean() / (2 * NOISE**2)


# Plain SGD with noise makes Langevin steps: the chains sample exp(-(f_SAM + lambda/2 |x - y|^2) / T) around a center y
# that stays (pull 0). f is the loss per point, so T = 1/points is Bayes' posterior for the prior N(y, T / lambda).
SAMPLING = {"coupling": "kernel", "pull": 0.0, "stiffness": 0.1, "temperature": 1 / POINTS, "period": 20}
TRAINING = {"coupling": "elastic", "period": 4}


def run_chains(folder: Path, model: nn.Module, data: tuple[Tensor, Tensor], steps: int, options: dict) -> None:
    """Take steps with a chain on each rank, and log them; the model holds the center afterwards."""
    training = options["coupling"] == "elastic"
    logged = {"config": options, "seed": options["seed"], "overwrite": True, "snapshot_every": str(steps // 100)}
    base = (torch.optim.Adam if training else torch.optim.SGD)(model.parameters(), lr=RATE if training else 3e-4)
    with (
        open_log(folder, model, comm, **logged) as log,
        LSAM(base, rho=0.02, on_exchange=log.exchange, state_callback=log.state_callback, **options) as opt,
    ):
        log.first_states(opt)

        def closure() -> Tensor:
            opt.zero_grad()
            loss = loss_of(model, *data)
            loss.backward()
            return loss

        for step in opt.steps(steps):  # steps of all ranks together
            if training:
                base.param_groups[0]["lr"] = RATE * (1 - step / steps)
            log.step(opt, step, opt.step(closure).item())
        opt.rendezvous()
        log.last_states(opt)
        log.close(opt.stats())
    center = torch.from_numpy(Run(folder).snapshot(0, -1, "center"))
    nn.utils.vector_to_parameters(center, model.parameters())


def independent(data: tuple[Tensor, Tensor], seed: int, steps: int) -> list[np.ndarray]:
    """Train networks from different starts by plain Adam, some on each rank; return the parameters of all."""
    mine = {}
    for member in range(comm.rank, MEMBERS, comm.size):
        model = network(1000 * (seed + 1) + member)
        base = torch.optim.Adam(model.parameters(), lr=RATE)
        for step in range(steps):
            base.param_groups[0]["lr"] = RATE * (1 - step / steps)
            base.zero_grad()
            loss_of(model, *data).backward()
            base.step()
        mine[member] = nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
    members = {member: vector for part in comm.allgather(mine) for member, vector in part.items()}
    return [members[member] for member in range(MEMBERS)]


def predict(vectors: list[np.ndarray], x: Tensor) -> np.ndarray:
    """Return the amplitudes that states predict, shape (states, N)."""
    model, rows = network(), []
    for vector in vectors:
        nn.utils.vector_to_parameters(torch.from_numpy(vector), model.parameters())
        rows.append(model(x)[:, 0].detach().double().numpy())
    return np.stack(rows)


def scores(predicted: np.ndarray, measured: Tensor) -> dict[str, float]:
    """Score the mixture of the members' normal distributions: NLL in nats, RMSE in m, coverage of intervals in %."""
    z = torch.from_numpy(measured[:, 0].double().numpy() - predicted) / NOISE
    logs = -(z**2) / 2 - math.log(NOISE * math.sqrt(2 * math.pi))
    # Where a measurement lies in the predicted distribution, 0 to 1: in the central 50 % interval if in 0.25 to 0.75.
    level = torch.special.ndtr(z).mean(0)
    within = {f"within{n}": float(100 * ((level - 0.5).abs() <= n / 200).double().mean()) for n in (50, 90)}
    nll, rmse = math.log(len(z)) - logs.logsumexp(0).mean(), NOISE * (z.mean(0) ** 2).mean().sqrt()
    return {"nll": float(nll), "rmse": float(rmse), **within}


def draw(ensembles: dict[str, list[np.ndarray]], out: Path) -> None:
    """Draw mean and band of two ensembles against the truth, at one damping."""
    zeta, omega, figure = 0.15, np.linspace(0.3, 1.8, 151), Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name, color in zip(panels, ("chains", "independent"), ("#0072B2", "#D55E00"), strict=True):
        predicted = predict(ensembles[name], inputs(omega, np.full_like(omega, zeta)))
        axes.axvspan(*RANGES["in range"], color="0.92", label="frequencies of the training data")
        axes.fill_between(omega, *np.quantile(predicted, (0.05, 0.95), 0), color=color, alpha=0.35, label="5 % to 95 %")
        axes.plot(omega, predicted.mean(0), color=color, label="mean")
        axes.plot(omega, amplitude(omega, np.full_like(omega, zeta)), "k--", lw=1, label="simulation")
        axes.set(title=f"{name}: {len(predicted)} members", xlabel="frequency of the force, rad/s", xlim=(0.3, 1.8))
        axes.legend(frameon=False, fontsize=8)
    panels[0].set(ylabel=f"steady amplitude at damping {zeta}, m")
    figure.savefig(out, dpi=150)


def main() -> None:
    """Train, sample, and compare, for each seed; rank 0 prints the table, writes numbers.json and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/oscillator"), help="folder (default: runs/oscillator)")
    parser.add_argument("--tiny", action="store_true", help="short: shows only that the script runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    training, sampling, seeds = (300, 200, 1) if args.tiny else (3000, 9000, 3)
    rows: list[dict[str, object]] = []
    for seed in range(seeds):
        data = simulate(POINTS, RANGES["in range"], seed)
        tests = {name: simulate(1000, omegas, 100 + seed) for name, omegas in RANGES.items()}
        model = network(seed)
        run_chains(args.out / f"{seed}-training", model, data, training, {**TRAINING, "seed": seed})
        run_chains(args.out / f"{seed}-sampling", model, data, sampling, {**SAMPLING, "seed": seed})
        others = independent(data, seed, 2 * (training + sampling) // MEMBERS)  # the same number of passes in total
        if comm.rank == 0:
            run = Run(args.out / f"{seed}-sampling")  # of each chain the first half is left out
            counts = {rank: len(run.snapshots(rank)["iteration"]) for rank in run.ranks}
            late = [run.snapshot(rank, at) for rank in run.ranks for at in range(counts[rank] // 2, counts[rank])]
            ensembles = {"center": [run.snapshot(0, -1, "center")], "chains": late}
            ensembles |= {"one independent": others[:1], "independent": others}
            for name, vectors in ensembles.items():
                for where, (x, y) in tests.items():
                    rows.append({"seed": seed, "ensemble": name, "where": where, **scores(predict(vectors, x), y)})
            (args.out / "numbers.json").write_text(json.dumps(rows, indent=1) + "\n")
        barrier(comm)  # the other ranks sleep
    if comm.rank == 0:
        draw(ensembles, args.out / "oscillator.png")  # of the last seed
        print("| ensemble | where | NLL | RMSE, m | in 50 % interval, % | in 90 % interval, % |")
        for key in dict.fromkeys((row["ensemble"], row["where"]) for row in rows):
            same = [list(row.values())[3:] for row in rows if (row["ensemble"], row["where"]) == key]
            pairs = zip(np.mean(same, 0), np.std(same, 0, ddof=int(seeds > 1)), strict=True)  # over the seeds
            print(f"| {' | '.join(key)} | {' | '.join(f'{m:.2f} ± {s:.2f}' for m, s in pairs)} |")


if __name__ == "__main__":
    main()
