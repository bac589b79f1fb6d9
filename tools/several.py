"""Runs a landscape program for several runs or for both splits of the data, and compares their numbers.

Each run is computed as if it were alone, and its files are those that it has alone. They are computed again only if the
options, the data or the states have changed since.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.compare.comparison import Case, run_labels
from lsam_hpc.landscape.compare.kinds import Kind, compare, together
from lsam_hpc.landscape.figures.stored import Stored, read
from lsam_hpc.tools import source
from lsam_hpc.tools.case_facts import Prepared, differences, facts_of, is_known, keep
from lsam_hpc.tools.comparison_files import DEFAULT_OUT, new_files, write
from lsam_hpc.tools.ranks import Ranks
from lsam_hpc.util.arguments import Parser


@dataclass(frozen=True)
class Runs:
    """What a comparison is made of.

    Args:
        args: options of the command line.
        cases: a case for each run and split.
        each: options with which each case is computed alone.
        about: the data, in words; empty if the numbers are of no data.
        together: numbers of all runs together, see `Verb`.
    """

    args: argparse.Namespace
    cases: Sequence[Case]
    each: Sequence[argparse.Namespace]
    about: str = ""
    together: Any = None


@dataclass(frozen=True)
class Verb:
    """A landscape program.

    Args:
        parser: of its options, with several runs.
        one: runs it for one run, and returns the exit code.
        prepare: checks options and states of one run, before anything is computed.
        name: base name of its files, from the options.
        suffixes: of its files that a comparison reads, from the options.
        compare: returns the kind of the comparison; called on rank 0.
        together: computes numbers of all runs together, with a folder for finished points; called on every rank.
            Default: there are none.
    """

    parser: Parser
    one: Callable[[argparse.Namespace], int]
    prepare: Callable[[argparse.Namespace], Prepared]
    name: Callable[[argparse.Namespace], str]
    suffixes: Callable[[argparse.Namespace], Sequence[str]]
    compare: Callable[[Runs], Kind]
    together: Callable[[Runs, Ranks, Path], Any] | None = None


def each_run(argv: Sequence[str], verb: Verb) -> int:
    """Run a program for one run, or compare several runs or both splits; return the exit code."""
    ranks = Ranks()
    args = ranks.raise_on_all(lambda: verb.parser.parse_args(argv))
    if len(args.run) > 1 or getattr(args, "split", None) == source.BOTH:
        return _compare(args, verb, ranks)
    args.run = args.run[0]
    return verb.one(args)


def _compare(args: argparse.Namespace, verb: Verb, ranks: Ranks) -> int:
    cases, each = ranks.raise_on_all(lambda: _cases(args, verb))
    figure, folder = f".{args.format}", Path(args.out or DEFAULT_OUT)
    both = f"-{args.split}" if getattr(args, "split", None) == source.BOTH else ""
    suffixes = verb.suffixes(args)
    name = f"compare-{verb.name(_copy(args))}{suffixes[0].partition('.')[0]}{both}"
    out = ranks.on_first(lambda: new_files(folder, name, (figure, ".h5", ".csv"), overwrite=args.overwrite))
    facts = ranks.raise_on_all(lambda: _prepare(verb, cases, each))
    cases = [replace(case, alone=fact["alone"]) for case, fact in zip(cases, facts, strict=True)]
    known = ranks.on_first(lambda: _known(cases, facts, suffixes, overwrite=args.overwrite))
    if ranks.is_first:
        for line in differences(cases, facts):
            print(f"warning: {line}", file=sys.stderr)
    for case, options, fact, read_again in zip(cases, each, facts, known, strict=True):
        if case.alone and not read_again:
            if ranks.is_first and not args.quiet:
                print(f"{case.run}{f', {case.split} data' if case.split else ''}:", file=sys.stderr)
            with contextlib.redirect_stdout(io.StringIO()):  # the table has its numbers
                verb.one(_copy(options))
            if ranks.is_first:
                keep(case, fact, suffixes)
    runs = Runs(args, cases, each, _about(facts))
    part = folder / f"{name}.part"
    if verb.together:
        ranks.on_first(lambda: folder.mkdir(parents=True, exist_ok=True))
        runs = replace(runs, together=verb.together(runs, ranks, part))
    if ranks.is_first:
        kind = verb.compare(runs)
        numbers = [read(c.file(suffixes[0])) if c.alone else Stored(c.base, "", "", {}, {}) for c in cases]
        compared = together(kind, cases, numbers)
        comparison = compare(compared)
        folder.mkdir(parents=True, exist_ok=True)
        write(comparison, compared, out, other=bool(getattr(args, "make_batches", None)))
        shutil.rmtree(part, ignore_errors=True)
        if args.quiet:
            return 0
        print(comparison.table, end="\n\n")
        if any(known):
            again = ", ".join(dict.fromkeys(case.run for case, yes in zip(cases, known, strict=True) if yes))
            print(f"computed before with the same options, and read again: {again}")
        files = [case.file(suffix) for case in cases for suffix in suffixes if case.alone]
        print("\n".join(map(str, [*files, *out.values()])))
    return 0


def _known(
    cases: Sequence[Case], facts: Sequence[dict[str, Any]], suffixes: Sequence[str], *, overwrite: bool
) -> list[bool]:
    """Return for each case whether its files hold its numbers already."""
    return [is_known(*of_case, suffixes, overwrite=overwrite) for of_case in zip(cases, facts, strict=True)]


def _about(facts: Sequence[Mapping[str, Any]]) -> str:
    """Return the data of a comparison in words."""
    used = [fact["objective"] for fact in facts if fact["objective"]]
    counts = {(each["split"] or "", each["samples"]) for each in used}
    of_split = [f"{samples:,} {split}".rstrip() for split, samples in sorted(counts, reverse=True)]
    other = " of other data" if any(each["split"] is None for each in used) else ""
    return f"{' and '.join(of_split)} samples{other}" if of_split else ""


def _copy(args: argparse.Namespace) -> argparse.Namespace:
    return argparse.Namespace(**vars(args))


def _cases(args: argparse.Namespace, verb: Verb) -> tuple[list[Case], list[argparse.Namespace]]:
    """Return the cases, and the options with which each is computed alone."""
    paths = [Path(run) for run in args.run]
    labels = run_labels(paths)
    both = getattr(args, "split", None) == source.BOTH
    if both and args.make_batches:
        raise InputError("--split both: expected a data set with two splits, found --make-batches")
    cases, each = [], []
    for i, (path, label) in enumerate(zip(paths, labels, strict=True)):
        for split in source.SPLITS if both else [getattr(args, "split", "")]:
            options = _copy(args)
            options.run, options.with_both, options.runs = str(path), both, len(paths)
            if split:
                options.split = split
            if both:
                options.name = f"{verb.name(_copy(args))}-{split}"
            own = source.figures_folder(path)
            if args.out and len(paths) > 1:
                own = Path(args.out) / label
                if own.resolve() == path.resolve():
                    raise InputError(f"--out: expected another folder than that of the run {path}, found {args.out}")
            elif args.out:
                own = Path(args.out)
            options.out = str(own)
            cases.append(Case(label, split, i, own / verb.name(_copy(options))))
            each.append(options)
    return cases, each


def _prepare(verb: Verb, cases: Sequence[Case], each: Sequence[argparse.Namespace]) -> list[dict[str, Any]]:
    """Check every run; return what the numbers of each case depend on.

    Raises:
        InputError: a run cannot be analysed, or the runs have different data sets.
    """
    facts = []
    for case, options in zip(cases, each, strict=True):
        try:
            facts.append(facts_of(verb.prepare(_copy(options)), options))
        except InputError as error:
            of_run = str(options.run) in str(error) or str(error).startswith("--")
            start = "" if len(cases) == 1 or of_run else f"{options.run}: "
            raise InputError(f"{start}{error}") from error
        first, data = facts[0]["data_set"], facts[-1]["data_set"]
        if data != first:
            raise InputError(
                f"data: expected the same data set in all runs, found {first} in {cases[0].run} and {data} in "
                f"{case.run}: name one in --data or --make-batches"
            )
    return facts
