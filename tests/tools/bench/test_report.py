"""docs/explanation/performance.md matches its JSON files."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from lsam_hpc import InputError
from lsam_hpc.cli import main
from lsam_hpc.tools.bench import growth_shard
from lsam_hpc.tools.bench import report as bench_report
from lsam_hpc.tools.bench.base import Report, aim, markdown, number
from tests.helpers.mpis import ROOT

BENCHMARKS = ROOT / "docs" / "benchmarks"
MACHINE = {
    "cpu": "X",
    "cores": "2",
    "memory": "24 GiB",
    "gpu": "none",
    "torch": "2",
    "python": "3",
    "mpi": "none",
    "ranks": "1",
    "load": "0.00",
    "date": "2026-01-01 00:00 UTC",
}


def growth(ranks, exponent=1.0, more=0.0, copy=1.0):
    """Return a report whose memory and times are power laws."""
    rows = []
    for size in (10**5, 10**6, 10**7, 10**8):
        row = {"parameters": size, "ranks": ranks, "skipped": "", "center's limit, models": 2 + 1 / ranks}
        row |= {"SGD, models": 3.0, "SAM more, models": 1.0, "center more, models": 2 + 1 / ranks + more}
        row |= dict.fromkeys(("SGD step ms", "SAM step ms", "exchange ms", "held up ms"), size / 1e6)
        row |= {"LSAM step ms": (size / 1e6) ** exponent, "memcpy ms": (size / 1e6) ** copy}
        rows.append({**row, "with sketches more, models": 1.0})
    rows.append({**dict.fromkeys(rows[0], ""), "parameters": 10**9, "ranks": ranks, "skipped": "9 GB needed, 8 free"})
    command = f"mpirun -n {ranks} lsam bench growth"
    return Report("growth", command, 30, False, {**MACHINE, "mpi": "Open MPI 5", "ranks": str(ranks)}, rows)


def straggler(part):
    rows = [
        {"": "own rates, summed", "steps/s": 72.0, "part of the own rates, %": 100.0},
        {"": "LSAM", "steps/s": 71.6, "part of the own rates, %": part},
    ]
    return Report("straggler", "lsam bench straggler", 30, False, MACHINE, rows)


def page(tmp_path, *reports, words=()):
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    for i, report in enumerate(reports):
        report.write(folder / f"{i}.json")
    assert main(["bench", "report", str(folder), *words, "--out", str(tmp_path / "p.md")]) == 0
    return (tmp_path / "p.md").read_text()


def test_the_committed_page_matches_the_committed_numbers():
    files = sorted(p for p in BENCHMARKS.iterdir() if p.suffix in (".json", ".md"))
    page = ROOT / "docs" / "explanation" / "performance.md"
    assert bench_report.render(files) == page.read_text(), "run: lsam bench report"


def test_a_changed_number_changes_the_page_and_the_verdict(tmp_path):
    good, bad = page(tmp_path, straggler(99.5)), page(tmp_path, straggler(94.0))
    assert "99.5; the aim was at least 95: met." in good
    assert "94; the aim was at least 95: **missed**." in bad
    assert "| LSAM | 71.6 | 99.5 |" in good


def test_exponents_are_those_of_the_power_laws(tmp_path):
    text = page(tmp_path, growth(4), growth(1))
    assert text.index("mpirun -n 1 ") < text.index("mpirun -n 4 ")
    assert "nothing in lsam-hpc grows faster than linearly" in " ".join(text.split())
    assert "at most 1 of its limit of two buffers and 1/R of a model: met" in text
    assert "9 GB needed, 8 free" in text
    assert (tmp_path / "figures" / "growth.png").read_bytes()[:4] == b"\x89PNG"
    steep = page(tmp_path, growth(1), growth(2, exponent=1.5))
    assert "the largest exponent of the size is 1.5 (LSAM step): **this is more than linear**" in " ".join(
        steep.split()
    )
    slow = page(tmp_path, growth(1), growth(2, copy=1.5))  # memcpy is a baseline
    assert "nothing in lsam-hpc grows faster than linearly" in " ".join(slow.split())
    fat = page(tmp_path, growth(1), growth(2, more=1.0))
    assert f"at most {3.5 / 2.5:.3g} of its limit of two buffers and 1/R of a model: **missed**" in fat


def test_memory_of_shards_beyond_its_limit_is_named(tmp_path):
    def report(more=0.0, moved=8.0):
        row = {
            "parameters": 10**7,
            "ranks of a chain, G": 2,
            "chains, C": 2,
            "bytes of an exchange": 4e6,
            "skipped": "",
        }
        row |= {growth_shard.MEMORY: 6.5 + more, growth_shard.LIMIT: 6.5, growth_shard.BYTES: moved}
        return Report("growth --shard", "lsam bench growth --shard", 30, False, MACHINE, [row])

    text = page(tmp_path, report())
    assert "or more: 1; the aim was at most 1.02: met" in text
    assert "A rank moves exactly 1/G" in text
    assert "or more: 1.08; the aim was at most 1.02: **missed**" in page(tmp_path, report(more=0.5))
    assert "A rank moves **not** 1/G" in page(tmp_path, report(moved=8.1))


def test_the_table_of_shards_is_that_of_the_committed_numbers():
    names = ["parameters", "ranks of a chain, G", "chains, C", growth_shard.MEMORY, growth_shard.LIMIT]
    names.append("bytes of an exchange")
    rows = [
        row
        for ranks in (2, 4)
        for row in Report.read(BENCHMARKS / f"growth-shard-{ranks}.json").rows[-(ranks // 2 + 1) :]
    ]
    assert markdown(rows, names) in (ROOT / "docs" / "howto" / "fsdp.md").read_text()


def test_one_line_of_machine_or_one_for_each(tmp_path):
    other = replace(growth(1), machine={**growth(1).machine, "cpu": "Y"})
    assert "\ncpu: X, cores: 2" in page(tmp_path, straggler(99.0), growth(1))
    text = page(tmp_path, straggler(99.0), other)
    assert "* straggler: cpu: X" in text
    assert "* growth: cpu: Y" in text


def test_notes_are_appended_unchanged(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "n.md").write_text("## By hand\n\n**a**\nb\n")
    assert page(tmp_path, straggler(99.0)).endswith("\n## By hand\n\n**a**\nb\n")


def test_lines_of_prose_are_not_too_long_and_tables_are_whole(tmp_path):
    for line in page(tmp_path, straggler(99.0), growth(2)).splitlines():
        assert line.startswith(("|", "!")) or len(line) <= bench_report.WIDTH


@pytest.mark.parametrize(
    ("value", "text"),
    [("", ""), (0.9951, "0.995"), (71.64, "71.6"), (1234.5, "1,234"), (10.0, "10"), (10**8, "100,000,000")],
)
def test_numbers(value, text):
    assert number(value) == text


def test_columns_that_are_empty_everywhere_are_left_out():
    assert markdown([{"a": 1, "b": ""}, {"a": "", "b": ""}]) == "| a |\n| --- |\n| 1 |\n|  |\n"


def test_an_aim_that_is_just_met():
    assert aim("x", 2.0, 2.0).endswith("met.\n")
    assert "missed" in aim("x", math.nextafter(2.0, 3), 2.0)


@pytest.mark.parametrize("text", ["{", "{}", "[1]", json.dumps({"benchmark": "log"})])
def test_files_that_are_no_reports(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match="expected a file written by lsam bench NAME --json"):
        bench_report.reports_of([tmp_path / "x.json"])


def test_no_files(tmp_path, capsys):
    for path in (tmp_path, tmp_path / "none"):
        assert main(["bench", "report", str(path), "--out", str(tmp_path / "p.md")]) == 2
    replace(straggler(1.0), benchmark="else").write(Path(tmp_path / "a.json"))
    assert main(["bench", "report", str(tmp_path), "--out", str(tmp_path / "p.md")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3
