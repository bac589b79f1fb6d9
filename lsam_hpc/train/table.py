"""The table of a run's results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lsam_hpc.util.text import columns

# The test result: its key in a rank's result, its name and its format.
ERROR, PERPLEXITY = ("test_error", "test error %", ".2f"), ("test_perplexity", "test perplexity", ".3f")
HEAD = ("steps", "exchanges", "rejected", "staleness mean", "max", "seconds")


def table(results: Sequence[Mapping[str, float]], lost: Sequence[int] = (), unit: str = "rank") -> str:
    """Return a text table: the center first, then every rank's or chain's sample.

    Args:
        results: of each rank, keys of `schema.RESULT`; one of them holds the center's numbers.
        lost: ranks that failed before the end; only their steps are known. Default: none.
        unit: what has a row: "rank" (default) or "chain".
    """
    finished = [result for rank, result in enumerate(results) if rank not in lost]
    center = next(result for result in finished if "center_test_error" in result)
    test = PERPLEXITY if "center_test_perplexity" in center else ERROR  # only text has a perplexity
    head = ("", "train loss", test[1], *HEAD)
    rows = [head, _row("center", "center", {**center, **_over_ranks(finished)}, test)]
    for rank, result in enumerate(results):
        if rank in lost:
            rows.append((f"{unit} {rank}", "LOST", "", f"{result['steps']:.0f}", *[""] * (len(head) - 4)))
        else:
            rows.append(_row(f"{unit} {rank}", "sample", result, test))
    text = columns(rows)
    if lost:
        text += f"\n{len(lost)} of {len(results)} {unit}s were lost: the results are those of the others"
    return text


def _over_ranks(results: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the sums, the means and the maxima over the ranks."""
    sums = {key: sum(r[key] for r in results) for key in ("steps", "exchanges", "refused")}
    stale = sum(r["staleness_mean"] * r["exchanges"] for r in results) / max(sums["exchanges"], 1)
    maxima = {key: max(r[key] for r in results) for key in ("staleness_max", "seconds")}
    return {**sums, **maxima, "staleness_mean": stale}


def _row(name: str, state: str, result: Mapping[str, float], test: tuple[str, str, str]) -> tuple[str, ...]:
    return (
        name,
        f"{result[f'{state}_train_loss']:.4f}",
        format(result[f"{state}_{test[0]}"], test[2]),
        *(f"{result[key]:.0f}" for key in ("steps", "exchanges", "refused")),
        f"{result['staleness_mean']:.2f}",
        f"{result['staleness_max']:.0f}",
        f"{result['seconds']:.1f}",
    )
