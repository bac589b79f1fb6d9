"""The golden scripts of the sites: `python -m tests.helpers.sites` writes them again."""

from __future__ import annotations

import contextlib
import io

from lsam_hpc.launch import site_files, submit
from tests.helpers.mpis import ROOT

GOLDEN = ROOT / "tests" / "launch" / "golden"
_COMMAND = "lsam train --data cifar10 --data-dir data --epochs 200"


def script(site: str) -> str:
    """Return what `lsam submit --dry-run --site SITE` prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        words = ["--dry-run", "--site", site, "--account", "PROJECT", "--setup", "source .venv/bin/activate"]
        assert submit.main([*words, "--", *_COMMAND.split()]) == 0
    return text.getvalue()


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in site_files.known():
        (GOLDEN / f"{name}.sh").write_text(script(name))
