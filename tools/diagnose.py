"""`lsam diagnose RUN`: are these chains samples, and did the machine do its part?"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from lsam_hpc.tools import source

from lsam_hpc.landscape.chains import Chains, chains
from lsam_hpc.landscape.draw_chains import draw_chains
from lsam_hpc.landscape.tables import places, write_arrays, write_csv
from lsam_hpc.landscape.verdicts import Verdict, are_samples, judge
from lsam_hpc.text import columns
from lsam_hpc.trajectory import Run

MARKS = {True: "good", False: "BAD", None: "-"}
WIDTH = 118


def main(argv: Sequence[str]) -> int:
    """Print the diagnosis and draw it; return the exit code."""
    parser = source.parser(
        "diagnose",
        "Tell whether a run's chains may be used as samples (R-hat, effective sample size, temperature) and how the "
        "exchanges went (staleness, waits, slow and lost ranks, refused exchanges), with what to change.",
    )
    parser.add_argument("--from", dest="start", type=float, default=0.5, metavar="SHARE",
                        help="of each chain's rows to leave out at its beginning (default: 0.5)")  # fmt: skip
    parser.add_argument("--components", type=int, default=3, help="principal components of the sketches (default: 3)")
    parser.add_argument("--json", action="store_true", help="print numbers and verdicts as JSON")
    parser.add_argument("--name", default="diagnose", help="of the files (default: diagnose)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    given = parser.parse_args(argv)
    run = Run(given.run, partial=given.partial)
    out = places(source.folder(given, run), given.name, [f".{given.format}", ".h5", ".csv"], given.overwrite)
    found = chains(run, given.start, given.components)
    verdicts = judge(found)
    for line in run.problems:
        print(line, file=sys.stderr)
    print(json.dumps(summary(found, verdicts), indent=1) if given.json else table(found, verdicts))
    write_csv(out[".csv"], {field.name: [getattr(verdict, field.name) for verdict in verdicts]
                            for field in dataclasses.fields(Verdict)})  # fmt: skip
    draws = {f"draws/{quantity.name}": quantity.draws for quantity in found.quantities}
    write_arrays(out[".h5"], {**draws, "staleness": found.staleness, "waits": found.waits,
                              "explained": found.explained}, summary(found, verdicts))  # fmt: skip
    draw_chains(found, out[f".{given.format}"])
    if not given.json:
        print("\n" + "\n".join(str(path) for path in out.values()))
    return 0


def table(found: Chains, verdicts: Sequence[Verdict]) -> str:
    """Return the diagnosis as text."""
    rows = [("quantity", "chains", "draws each", "every", "R-hat", "ESS", "autocorrelation time")]
    for quantity in found.quantities:
        chains_, draws = quantity.draws.shape
        rows.append((quantity.name, str(chains_), str(draws), f"{quantity.spacing:g} steps",
                     f"{quantity.mixing.rhat:.3f}", f"{quantity.mixing.ess:.0f}",
                     f"{quantity.tau:.0f} steps"))  # fmt: skip
    answer = "yes" if are_samples(list(verdicts)) else "no"
    lines = [columns(rows), "", f"Are these chains samples? {answer}.", ""]
    for verdict in verdicts:
        head = f"{MARKS[verdict.good]:>4}  {verdict.name}: "
        lines.append(textwrap.fill(head + verdict.text, WIDTH, subsequent_indent=" " * 6))
    return "\n".join(lines)


def summary(found: Chains, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return all numbers but the series, ready for JSON: what is not known is null."""
    plain: dict[str, Any] = _plain({
        "samples": are_samples(list(verdicts)),
        "from": found.start,
        "chains": found.used,
        "quantities": {
            q.name: {**q.mixing._asdict(), "draws": q.draws.shape[1], "spacing": q.spacing, "tau_steps": q.tau}
            for q in found.quantities
        },
        "explained": found.explained.tolist(),
        "spread": None if found.spread is None else {**dataclasses.asdict(found.spread), "kernel": found.spread.kernel,
                                                     "implied_temperature": found.spread.implied},
        "staleness": found.staleness.tolist(),
        "waits": dict(zip(("median", "p90", "max"), np.quantile(found.waits, (0.5, 0.9, 1)).tolist(), strict=True))
        if len(found.waits) else None,
        "ranks": [dataclasses.asdict(rank) for rank in found.ranks],
        "verdicts": [dataclasses.asdict(verdict) for verdict in verdicts],
    })  # fmt: skip
    return plain


def _plain(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
