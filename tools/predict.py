"""`lsam predict RUN`: compare the predictions of the center, of single chains and of ensembles of samples."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.compare.kinds import Kind
from lsam_hpc.landscape.figures.draw_reliability import arrays_of, draw_reliability
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.prediction.calibration import BINS, EDGES, Scores, mean_scores, scores
from lsam_hpc.landscape.prediction.ensembles import chains_with_samples, members, probabilities
from lsam_hpc.landscape.report.tables import places, write_arrays, write_csv
from lsam_hpc.landscape.states import state
from lsam_hpc.tools import source
from lsam_hpc.tools.case_facts import Prepared
from lsam_hpc.tools.jobs import share
from lsam_hpc.tools.ranks import Ranks, add_ranks, objective_options, set_threads
from lsam_hpc.tools.several import Runs, Verb, each_run
from lsam_hpc.train.evaluation import SUBSET
from lsam_hpc.trajectory import Run
from lsam_hpc.util.arguments import Parser
from lsam_hpc.util.document import document
from lsam_hpc.util.text import columns

CENTER, CHAINS, SNAPSHOTS = "center", "chains' last samples", "snapshots"


class Predictor(NamedTuple):
    """A row of the table: a predictor, the number of states whose probabilities it averages, and its scores."""

    name: str
    members: int
    scores: Scores


def main(argv: Sequence[str]) -> int:
    """Predict, print, write and draw, for one run or to compare several; return the exit code."""
    return each_run(argv, Verb(_parser(), _one, _prepare, lambda args: str(args.name), lambda _: (".h5",), _compare))


def _one(options_of_run: argparse.Namespace) -> int:
    ranks = Ranks()
    args, run, objective, calibrator = ranks.raise_on_all(lambda: _begin(options_of_run))
    figure = f".{args.format}"
    out = ranks.on_first(
        lambda: places(source.folder(args, run), args.name, [figure, ".h5", ".csv"], overwrite=args.overwrite)
    )
    ensembles = ranks.raise_on_all(lambda: _ensembles(args, run))
    predictors = _predict(args, ranks, run, objective=objective, calibrator=calibrator, ensembles=ensembles)
    if ranks.is_first:
        table = _columns(predictors)
        title = source.heading(args, run, objective, "predictions")
        notes = {"from": args.start, "thin": args.thin, "ensembles": ensembles, **objective_options(args, objective)}
        write_csv(out[".csv"], table)
        bins = [p.scores.reliability for p in predictors]
        panels = {f"{p.name} ({p.members})" if p.members > 1 else p.name: p.scores for p in predictors}
        arrays = {**table, **{name: [getattr(b, name) for b in bins] for name in ("confidence", "accuracy")}}
        numbers = {**arrays, **arrays_of(panels), "edges": EDGES}
        write_arrays(out[".h5"], numbers, {**notes, "figure": {"kind": "predict", "title": title}})
        draw_reliability(panels, out[figure], title)
        if args.json:
            print(document({**notes, "predictors": _rows(table)}))
        elif not args.quiet:
            split = "" if args.make_batches else f" {args.split}"
            _print(predictors, f"{objective.samples}{split} samples")
            print("\n" + "\n".join(str(path) for path in out.values()))
    return 0


def _begin(args: argparse.Namespace) -> tuple[argparse.Namespace, Run, Objective, Objective]:
    """Return options, run, the objective on the data to predict, and the one that gives BatchNorm's statistics."""
    source.parse(_parser(), args)
    args.loss = None
    set_threads(args)
    run = Run(args.run, partial=args.partial)
    objective = calibrator = source.objective(args, run)
    if objective.recalibrates and not args.make_batches:  # the test images must not enter the statistics
        training = {**vars(args), "split": "train", "images": SUBSET}
        calibrator = source.objective(argparse.Namespace(**training), run)
    return args, run, objective, calibrator


def _prepare(args: argparse.Namespace) -> Prepared:
    args, run, objective, _ = _begin(args)
    if args.json:
        raise InputError("--json: expected one run and one split of its data: the numbers are in the .csv file")
    ensembles = _ensembles(args, run)
    return Prepared(run, objective, [state(run, name) for name in (CENTER, *ensembles.get(CHAINS, ()))])


def _compare(runs: Runs) -> Kind:
    return Kind("predictions", {"title": f"Predictions, {runs.about}"})


def _parser() -> Parser:
    parser = source.parser(
        "predict",
        "Compare the predictions of the center, of a single chain, and of ensembles, which average the class "
        "probabilities of the chains' last samples or of snapshots: error, negative log-likelihood, Brier score and "
        f"expected calibration error ({BINS} bins), with reliability diagrams.",
        several=True,
    )
    parser.add_argument(
        "--from",
        dest="start",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="share of each chain's steps whose snapshots are left out, at its start (default: 0.5)",
    )
    parser.add_argument(
        "--thin", type=int, default=1, metavar="N", help="take every Nth snapshot, back from the last (default: 1)"
    )
    parser.add_argument("--name", default="predict", help="base name of the files (default: predict)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    source.add_objective(parser, 0, split="test", loss=False, both=True)
    add_ranks(parser)
    return parser


def _ensembles(args: argparse.Namespace, run: Run) -> dict[str, list[str]]:
    """Return the names of the states in each ensemble; those without members are left out."""
    chains = chains_with_samples(run)
    ensembles = {CENTER: [CENTER]}
    if chains:
        last = {rank: len(run.snapshots(rank)["iteration"]) - 1 for rank in chains}
        ensembles[CHAINS] = [f"{rank}@{last[rank]}" for rank in chains]
        chosen = [f"{rank}@{index}" for rank in chains for index in members(run, rank, args.start, args.thin)]
        if not chosen:
            raise InputError(f"--from: expected a share of the steps before the last snapshot, found {args.start}")
        ensembles[SNAPSHOTS] = chosen
    return ensembles


def _predict(
    args: argparse.Namespace,
    ranks: Ranks,
    run: Run,
    *,
    objective: Objective,
    calibrator: Objective,
    ensembles: Mapping[str, Sequence[str]],
) -> list[Predictor]:
    """Return the predictors; each state is evaluated once, on one rank."""
    names = list(dict.fromkeys(name for group in ensembles.values() for name in group))
    sums: dict[str, Any] = dict.fromkeys(ensembles, 0.0)
    targets: NDArray[np.int64] = np.concatenate([y.cpu().numpy() for _, y in objective.batches])

    def job(name: str) -> Callable[[], Scores | None]:
        def evaluate() -> Scores | None:
            x = calibrator.vector(state(run, name))
            predicted = probabilities(calibrator.at(x), objective.batches)
            for ensemble, group in ensembles.items():
                if name in group:
                    sums[ensemble] = sums[ensemble] + predicted
            single = name == CENTER or name in ensembles.get(CHAINS, ())
            return scores(predicted, targets) if single else None

        return evaluate

    singles = share(ranks, [job(name) for name in names], None if args.quiet else "lsam predict")
    if ranks.comm is not None:
        sums = {name: ranks.comm.allreduce(value) for name, value in sums.items()}
    by_name = dict(zip(names, singles, strict=True))
    predictors = []
    for name, group in ensembles.items():
        if name == CHAINS:
            chains = [s for member in group if (s := by_name[member]) is not None]
            predictors.append(Predictor(f"one chain, mean of {len(group)}", 1, mean_scores(chains)))
        predictors.append(Predictor(name, len(group), scores(sums[name] / len(group), targets)))
    return predictors


def _columns(predictors: Sequence[Predictor]) -> dict[str, list[Any]]:
    center = predictors[0].scores.losses
    differences = [p.scores.losses - center for p in predictors]
    return {
        "predictor": [p.name for p in predictors],
        "members": [p.members for p in predictors],
        "error": [p.scores.error for p in predictors],
        "nll": [p.scores.nll for p in predictors],
        "nll_minus_center": [float(d.mean()) for d in differences],
        "standard_error": [float(d.std(ddof=1) / math.sqrt(len(d))) if len(d) > 1 else math.nan for d in differences],
        "brier": [p.scores.brier for p in predictors],
        "ece": [p.scores.ece for p in predictors],
    }


def _rows(table: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    return [{k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()} for row in rows]


def _print(predictors: Sequence[Predictor], what: str) -> None:
    rows = [("predictor", "members", "error %", "NLL", "NLL - center's", "Brier", "ECE")]
    for row in _rows(_columns(predictors)):
        difference, error = row["nll_minus_center"], row["standard_error"]
        first = row["predictor"] == CENTER or difference is None
        rows.append(
            (
                row["predictor"],
                str(row["members"]),
                f"{row['error']:.2f}",
                "inf" if row["nll"] is None else f"{row['nll']:.4f}",
                "-" if first else f"{difference:+.2g} ± {error:.1g}" if error is not None else f"{difference:+.2g}",
                f"{row['brier']:.4f}",
                f"{row['ece']:.4f}",
            )
        )
    print(f"predictions of {what}\n\n{columns(rows)}")
    if len(predictors) == 1:
        print("\nno snapshots of the samples, so no ensembles: train with --snapshot-every log, or a number of steps")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
