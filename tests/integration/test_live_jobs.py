"""The page of `lsam report --live` in a real browser, of a real job: it runs, a rank is stopped, it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from lsam_hpc.tools import live
from tests.helpers.browser import chromium, wait
from tests.helpers.jobs import job, processes
from tests.helpers.mpis import available
from tests.helpers.waiting import wait_until

STATES = "[...document.querySelectorAll('#ranks tr')].map(r => r.dataset.state).join()"
CURVES = """return ["loss", "staleness", "distance"].map(name => {
    const svg = document.getElementById(name);
    return [...svg.querySelectorAll("path[fill=none]")].map(p => p.getAttribute("d").split("L").length)})"""
# Whether something is cut off, the contrasts of all texts, and the styles that tell the ranks apart.
LOOK = """
    const rgb = text => text.match(/[\\d.]+/g).map(Number), root = document.documentElement;
    const light = c => { const v = c.slice(0, 3).map(x => x / 255).map(x => x <= .04045 ? x / 12.92 :
        ((x + .055) / 1.055) ** 2.4); return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; };
    const paper = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
        if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
    const ratios = [], cut = [];
    for (const e of document.querySelectorAll("body *:not(script)")) {
        const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
        if (!own || !e.checkVisibility()) continue;
        const colour = getComputedStyle(e)[e.closest("svg") ? "fill" : "color"];
        const [a, b] = [light(rgb(colour)), light(paper(e))].sort((x, y) => y - x);
        ratios.push([(a + .05) / (b + .05), e.tagName + " " + e.textContent.trim().slice(0, 40)]);
        const box = e.getBoundingClientRect(), svg = e.closest("svg.plot");
        if (svg) { const s = svg.getBoundingClientRect();
            if (box.left < s.left - 1 || box.right > s.right + 1 || box.top < s.top - 1 || box.bottom > s.bottom + 1)
                cut.push(e.textContent); }
        else if (!e.closest(".scroll") && (box.left < 0 || box.right > root.clientWidth + 1)) cut.push(e.textContent);
    }
    for (const path of document.querySelectorAll("svg.plot path[fill=none]")) {
        const [a, b] = [light(rgb(getComputedStyle(path).stroke)), light(paper(path))].sort((x, y) => y - x);
        ratios.push([(a + .05) / (b + .05), "curve"]);
    }
    const marks = [...document.querySelectorAll("#loss text[data-rank]")].map(t => t.getBoundingClientRect());
    return {across: root.scrollWidth - root.clientWidth, cut, ratios,
            apart: marks.every((m, i) => marks.every((o, j) => i === j || Math.abs(m.top - o.top) > 8)),
            dashes: [...document.querySelectorAll("#loss path[fill=none]")].map(
                p => p.getAttribute("stroke-dasharray")),
            labels: [...document.querySelectorAll("svg.plot")].map(s => s.getAttribute("aria-label"))}"""


def check(browser: Any) -> None:
    """Check the page at two widths, in light and dark colours."""
    for width in (400, 1200):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        for scheme in ("light", "dark"):
            chosen = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", chosen)
            drawn = (
                "return document.getElementById('loss').viewBox.baseVal.width === document.getElementById('loss').{}"
            )
            wait(browser, drawn.format("clientWidth"))
            look = browser.execute_script(LOOK)
            assert (look["across"], look["cut"]) == (0, [])
            assert len(look["ratios"]) > 40
            assert [pair for pair in look["ratios"] if pair[0] < 4.5] == []
            assert len(set(look["dashes"])) == 2
            assert look["apart"]
            assert all("rank 0: " in text and "rank 1: " in text for text in look["labels"])


@pytest.mark.slow("a job in a browser")
def test_the_page_follows_a_job(tmp_path: Path) -> None:
    if "openmpi" not in available():
        pytest.skip("Open MPI is not installed, by which this job is started and stopped")
    out = tmp_path / "run"
    with (
        chromium(tmp_path / "chromium") as browser,
        job(available()["openmpi"], out, "--checkpoint-every", "none") as mpirun,
    ):
        wait_until((out / "config.json").exists, "the run directory", 60, pause=0.1)
        with live.LiveServer(out, 0) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                entries = _follow(browser, server.url, out, mpirun)
            finally:
                server.shutdown()
                thread.join()
        wait(browser, "return document.getElementById('trouble').textContent.startsWith('No answer')", 20)
        assert browser.execute_script(CURVES)[0][0] > 20  # the last curves are still there
    events = [json.loads(entry["message"])["message"] for entry in entries]
    sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert len(sent) > 5
    assert [url for url in sent if not url.startswith((server.url, "data:,"))] == []


def _follow(browser: Any, url: str, out: Path, mpirun: Any) -> list[dict[str, Any]]:
    browser.get_log("performance")  # of the browser's first tab
    browser.get(url)
    wait(browser, f"return {STATES} === 'running,running'", 60)
    wait(
        browser,
        "return /^Step [0-9,]+ of [0-9,]+ \\(.*, about .* left$/.test(document.getElementById('progress').textContent)",
    )
    first = [count for counts in browser.execute_script(CURVES) for count in counts]
    more = f"return now.flat().every((n, i) => n > 128 || n > {first}[i])"  # a full curve has 128 to 256 points
    wait(browser, f"const now = (() => {{ {CURVES} }})(); {more}")
    check(browser)
    rank = processes(out)[1].number
    os.kill(rank, signal.SIGSTOP)
    try:
        wait(browser, f"return {STATES} === 'running,lost'", 30)
        assert (
            browser.execute_script("return document.querySelector('[data-state=lost]').textContent").find("✕ lost") > 0
        )
        assert browser.find_element("id", "job").text.endswith(
            "running on " + socket.gethostname() + "; rank 1 is lost"
        )
        ages = "return Number(document.querySelector('[data-state=lost]').cells[3].textContent)"
        assert browser.execute_script(ages) >= 3
    finally:
        os.kill(rank, signal.SIGCONT)
    wait(browser, f"return {STATES} === 'running,running'", 30)
    for process in processes(out):
        os.kill(process.number, signal.SIGUSR1)
    wait(browser, f"return {STATES} === 'stopped,stopped'", 30)
    assert mpirun.wait(timeout=30) == 3
    wait(browser, "return document.getElementById('job').textContent.includes('stopped after a checkpoint')", 20)
    assert browser.execute_script("return document.getElementById('progress').textContent").endswith(
        "of all ranks together"
    )
    check(browser)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    entries: list[dict[str, Any]] = browser.get_log("performance")
    return entries
