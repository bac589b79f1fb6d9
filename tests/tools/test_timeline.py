"""`lsam timeline` at the command line; the events themselves are tested with the library."""

import gzip
import json

from lsam_hpc.cli import main
from tests.helpers.logs import make_run


def test_timeline(tmp_path, capsys):
    path = make_run(tmp_path / "run", 2, 300, states=True)
    out = tmp_path / "trace.json.gz"
    assert main(["timeline", str(path), str(out)]) == 0
    trace = json.loads(gzip.decompress(out.read_bytes()))["traceEvents"]
    assert capsys.readouterr().out == f"{out}: {len(trace)} events of 2 ranks; open it at ui.perfetto.dev\n"
    assert sum(e["ph"] == "X" and e["name"].startswith("step ") for e in trace) == 600
    assert main(["timeline", str(path), str(out)]) == 2
    assert f"{out}: expected no such file, found one" in capsys.readouterr().err
    assert main(["timeline", str(path), str(tmp_path / "trace.txt")]) == 2
    assert "expected a name that ends in .json or .json.gz" in capsys.readouterr().err
