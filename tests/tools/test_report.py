"""`lsam report`: a self-contained page, opened in a real browser if one is installed."""

import json
import re
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

from lsam_hpc import InputError, cli
from lsam_hpc.tools.inspect_run import summary
from lsam_hpc.tools.report import main
from lsam_hpc.tools.report_facts import facts
from lsam_hpc.train.config import TrainConfig
from lsam_hpc.train.models import mlp
from lsam_hpc.trajectory import CountSketch, Run, Snapshots, TrajectoryWriter
from lsam_hpc.util import progress
from tests.helpers.browser import chromium, wait
from tests.helpers.landscapes import WORDS, write_run
from tests.helpers.logs import attributes, make_run
from tests.helpers.mpis import ROOT

RANKS = 2


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the built-in model with random chains, and a name that contains HTML."""
    path = tmp_path_factory.mktemp("report") / "run <b>&"
    path.mkdir()
    config = {**vars(TrainConfig()), "note": "</script><script>window.hacked = true</script>"}
    (path / "config.json").write_text(json.dumps(config))
    model = mlp((1, 8, 8), 10)
    layout = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    start = torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
    sketch = CountSketch(start.size)
    for rank in range(RANKS):
        chance = np.random.default_rng(rank)
        x = start.copy()
        options = {"sketch": sketch, "snapshots": Snapshots(every=100)}
        with TrajectoryWriter(path, rank, layout, attributes(RANKS, config=json.dumps(config)), **options) as writer:
            for i in range(400):
                writer.step(iteration=i, total_iteration=RANKS * i + rank, loss=2.0 + 0.1 * chance.standard_normal())
                if i % 4 == 3:
                    x += 0.01 * chance.standard_normal(x.size).astype(np.float32)
                    writer.sketch("sample", sketch(x), i + 1)
                    writer.exchange(
                        began=float(i),
                        iteration=i + 1,
                        seconds=0.01,
                        version_read=i,
                        version_added=i + 1,
                        staleness=1,
                        center_distance=float(np.linalg.norm(x - start)),
                        delta_norm=0.1,
                        accepted=1,
                        blocked=0.001,
                        delay=1,
                    )
                if i % 100 == 99:
                    writer.snapshot("sample", x, i + 1)
                    writer.snapshot("center", start, i + 1)
    figures = path / "figures"
    figures.mkdir()
    (figures / "mine.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    return path


@pytest.fixture(scope="module")
def page(run):
    assert main([str(run), "--surface", "4", "--images", "100"]) == 0
    return run / "report.html"


def test_the_page_is_complete_and_self_contained(page):
    text = page.read_text()
    body = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", body)
    assert "Run run &lt;b&gt;&amp;" in body
    assert "window.hacked" in body
    assert "<script>window.hacked" not in text
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", body) == [
        "Summary",
        "Are these chains samples?",
        "Where the chains went",
        "The loss around the chains",
        "Figures of other programs",
        "Ranks",
        "Options and origin",
    ]
    assert body.count("<img") == body.count("alt=") == 3
    assert "default-src 'none'" in body


def test_a_page_without_a_surface_omits_the_plotting_library(run, tmp_path, capsys):
    capsys.readouterr()
    assert main([str(run), "--surface", "0", "--out", str(tmp_path), "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert (tmp_path / "report.html").stat().st_size < 2e6


def test_a_run_without_states_has_the_rest_of_the_page(tmp_path):
    path = make_run(tmp_path / "bare", rows=50)
    assert main([str(path)]) == 0
    text = (path / "report.html").read_text()
    assert "Not drawn: " in text
    assert "What each rank did" in text


def test_a_run_that_names_no_data_has_all_but_the_surface(tmp_path, capsys, monkeypatch):
    # As of a Horovod script: the run's options do not say how to make model and data.
    path = write_run(tmp_path / "run")
    assert main([str(path)]) == 0
    text = (path / "report.html").read_text()
    assert "Where the chains went" in text
    assert "The loss around the chains" not in text
    assert "No surface of the loss: --data: expected " in text
    assert "None" not in re.sub(r"<img[^>]*>|<script>.*?</script>", "", text, flags=re.DOTALL)
    assert "no surface of the loss: --data: expected" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"--data: expected .*, found none"):
        main([str(path), "--surface", "5"])
    capsys.readouterr()
    monkeypatch.setattr(progress, "PAUSE", -1.0)  # a line for each point
    assert main([str(path), "--surface", "5", *WORDS]) == 0
    assert "The loss around the chains" in (path / "report.html").read_text()
    shown = capsys.readouterr().err
    assert "lsam report: checking the chains\n" in shown
    assert "lsam report --surface: 25 of 25 points, " in shown


FACTS = ["Data", "Model", "Ranks", "Result", "Time", "Verdict", "Software"]


def test_the_facts_come_first(page):
    body = page.read_text().partition("<main")[2]
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", body.partition("</dl>")[0]))
    assert [name for name in facts if name in FACTS] == FACTS
    assert body.index("<dl") < body.index("<img")
    assert facts["Data"] == "digits"
    assert facts["Model"].startswith("mlp, ")
    assert re.match(r"2 on here; 800 steps \(400 to 400 each\), 200 exchanges$", facts["Ranks"])
    assert "last mini-batch loss " in facts["Result"]
    verdict, _, others = facts["Verdict"].partition("; other problems: ")
    assert verdict.startswith("The chains are not samples: ")
    told = [name for part in (verdict[28:-7], others) for name in re.split(r", | and ", part) if name]
    assert told == re.findall(r"Problem: (.*?)\.", body)
    captions = "".join(re.findall(r"<figcaption>.*?</figcaption>", body))
    assert "\u00a0%" in captions
    assert " %" not in captions
    for term in ("R-hat", "ESS", "staleness", "autocorrelation time"):
        assert f"<dt>{term}</dt>" in body


def test_the_facts_of_a_run_that_ended(tmp_path):
    path = make_run(tmp_path / "run", rows=400)
    info = summary(Run(path))
    info["center"] = {"train_loss": 0.0123, "test_error": 2.5, "test_perplexity": None}
    del info["ranks"][1:]
    info["ranks"][0]["result"] = {"seconds": 7300.0, "sample_test_error": 3.0, "sample_train_loss": 0.02}
    told = dict(facts(info, None))
    assert told["Result"].startswith("center: train loss 0.0123, test error 2.50 %; samples: train loss 0.02")
    assert told["Time"].startswith("2 h 2 min of training, ")
    assert told["Verdict"].startswith("Not judged")
    info["center"]["test_perplexity"] = 12.3456
    info["ranks"][0]["result"]["sample_test_perplexity"] = 13.0
    info["config"] = {"data": "text", "subset": 100}
    told = dict(facts(info, None))
    assert told["Result"].startswith("center: train loss 0.0123, test error 2.50 %, test perplexity 12.35; samples: ")
    assert told["Result"].endswith("test error 3.00 %, test perplexity 13")
    assert "text, 100 windows" in told.values()


@pytest.mark.slow("draws nine figures")
def test_what_other_verbs_stored_is_used_and_shown_once(tmp_path):
    path = write_run(tmp_path / "run", states=60, sketches=True)
    assert cli.main(["diagnose", str(path)]) == 0
    assert cli.main(["trajectory", str(path), "--surface", "6", "--losses", *WORDS]) == 0
    assert cli.main(["sharpness", str(path), "--case", "average", *WORDS]) == 0
    assert cli.main(["diagnose", str(path), "--from", "0.25", "--name", "later"]) == 0
    assert main([str(path), *WORDS]) == 0
    body = (path / "report.html").read_text()
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", body)
    assert captions[2] == "File: figures/later.png; numbers: figures/later.csv."
    assert captions[3].startswith("Rise of the loss when the parameters move within a ball: ")
    assert captions[3].endswith(" File: figures/sharpness.png; numbers: figures/sharpness.csv.")
    assert len(captions) == 4
    assert "(cross-entropy of 30 samples of other data; read from figures/trajectory.h5, not computed" in body
    with h5py.File(path / "figures" / "trajectory.h5") as file:
        loss = file["surface/loss"][()]
    shown = json.loads(re.search(r'id="space-data">(.*?)</script>', body)[1])["traces"][0]["z"]
    np.testing.assert_allclose(shown, np.log10(loss) if "log scale" in body else loss)


def test_without_torch_the_page_is_made(tmp_path):
    path = write_run(tmp_path / "run", states=24, sketches=True)
    code = (
        "import sys\nclass Missing:\n def find_spec(self, name, path=None, target=None):\n"
        "  if name.split('.')[0] == 'torch': raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from lsam_hpc import cli; sys.exit(cli.main(['report', *sys.argv[1:]]))"
    )
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"{path / 'report.html'}\n"), done.stderr
    text = (path / "report.html").read_text()
    assert "No surface of the loss: expected the package torch, found none: pip install torch." in text
    assert "Where the chains went" in text


def test_bad_input(run, tmp_path):
    with pytest.raises(InputError, match="--surface: expected 2 points or more, or 0, found 1"):
        main([str(run), "--surface", "1"])
    with pytest.raises(InputError, match="--name: expected a name without folders"):
        main([str(run), "--name", "../r.html"])
    with pytest.raises(InputError, match="expected a run directory, found nothing"):
        main([str(tmp_path / "none")])


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        driver.get(page.as_uri())
        wait(driver, "return !!document.querySelector('#space canvas')")
        yield driver


@pytest.mark.slow("needs a browser")
def test_in_a_browser_every_control_works_and_nothing_leaves_the_machine(browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    def eye():
        return browser.execute_script("return {...document.getElementById('space')._fullLayout.scene.camera.eye}")

    assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    first = eye()
    for button in browser.find_elements(By.CSS_SELECTOR, "[data-turn], [data-zoom], [data-reset]"):
        before = eye()
        button.send_keys(Keys.ENTER)  # with the keyboard
        wait(
            browser,
            f"return JSON.stringify(document.getElementById('space')._fullLayout.scene.camera.eye) != "
            f"'{json.dumps(before, separators=(',', ':'))}'",
        )
        assert button.text in browser.find_element(By.ID, "space-said").text
    assert eye() == pytest.approx(first)
    chains = Select(browser.find_element(By.ID, "chains"))
    assert [option.text for option in chains.options] == ["all", "rank 0", "rank 1"]
    chains.select_by_visible_text("rank 1")
    shown = "return document.getElementById('space').data.map(t => [t.meta, t.visible])"
    wait(browser, "return document.getElementById('space').data.find(t => t.meta).visible == 'legendonly'")
    for meta, visible in browser.execute_script(shown):
        assert visible == ("legendonly" if meta == "rank 0" else True)
    chains.select_by_visible_text("all")
    wait(browser, "return document.getElementById('space').data.find(t => t.meta).visible === true")
    paper = "return getComputedStyle(document.body).backgroundColor"
    light = browser.execute_script(paper)
    theme = browser.find_element(By.ID, "theme")
    colours = []
    for _ in range(3):
        theme.click()
        colours.append((theme.text, browser.execute_script(paper)))
    assert [text for text, _ in colours] == ["Colours: dark", "Colours: light", "Colours: as the system"]
    assert colours[0][1] != light == colours[1][1] == colours[2][1]
    assert browser.execute_script(
        "window.dispatchEvent(new Event('beforeprint')); "
        "return [...document.querySelectorAll('details')].every(d => d.open)"
    )
    browser.execute_script("window.dispatchEvent(new Event('afterprint'))")
    assert not browser.execute_script("return [...document.querySelectorAll('details')].some(d => d.open)")
    assert browser.execute_script("return window.hacked") is None
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    asked = [
        s["request"]["url"] for s in sent if s["documentURL"].startswith("file:")
    ]  # not requests of the browser's first tab
    assert asked
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


@pytest.mark.slow("needs a browser")
def test_the_page_is_built_for_screen_readers(browser):
    page = browser.execute_script("""
        const named = e => e.getAttribute("aria-label") || e.textContent.trim() || (e.labels && e.labels.length);
        const tables = [...document.querySelectorAll("table")];
        return {lang: document.documentElement.lang,
                levels: [...document.querySelectorAll("h1, h2, h3")].map(h => h.tagName),
                unnamed: [...document.querySelectorAll("button, select, a, [role=img], [role=region]")]
                    .filter(e => !named(e)).map(e => e.outerHTML.slice(0, 80)),
                alts: [...document.images].filter(i => !i.alt).length,
                heads: tables.every(t => t.getAttribute("aria-label") && t.querySelector("th[scope=col]")),
                ids: [...document.querySelectorAll("nav a")].every(a => document.querySelector(a.hash))};
    """)
    assert page["lang"] == "en"
    assert page["levels"][0] == "H1"
    assert set(page["levels"][1:]) == {"H2", "H3"}
    assert (page["unnamed"], page["alts"], page["heads"], page["ids"]) == ([], 0, True, True)


CONTRAST = """
    const rgb = text => text.match(/[\\d.]+/g).map(Number);
    const light = c => { const v = c.slice(0, 3).map(x => x / 255).map(x => x <= .04045 ? x / 12.92 :
        ((x + .055) / 1.055) ** 2.4); return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; };
    const paper = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
        if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
    document.querySelectorAll("details").forEach(d => d.open = true);
    const ratios = [];
    for (const e of document.querySelectorAll("body *:not(svg *):not(script)")) {
        const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
        if (!own || !e.checkVisibility()) continue;
        const [a, b] = [light(rgb(getComputedStyle(e).color)), light(paper(e))].sort((x, y) => y - x);
        ratios.push([(a + .05) / (b + .05), e.tagName + " " + e.textContent.trim().slice(0, 40)]);
    }
    const plot = document.getElementById("space"), layout = plot._fullLayout;
    const hex = text => { const c = document.createElement("i"); c.style.color = text; document.body.append(c);
        const found = rgb(getComputedStyle(c).color); c.remove(); return found; };
    for (const [name, colour, behind] of [["axis", layout.scene.xaxis.color, layout.paper_bgcolor],
        ["walls", layout.scene.xaxis.color, layout.scene.xaxis.backgroundcolor],
        ["bar", layout.font.color, layout.paper_bgcolor],
        ["legend", layout.legend.font.color, layout.paper_bgcolor]]) {
        const [a, b] = [light(hex(colour)), light(hex(behind))].sort((x, y) => y - x);
        ratios.push([(a + .05) / (b + .05), "plot: " + name]);
    }
    return ratios;
"""


@pytest.mark.slow("needs a browser")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_is_readable_on_any_screen_and_in_the_dark(page, browser, width, scheme):
    browser.get_log("browser")
    size = {"height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 1600 - width, **size})
    chosen = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", chosen)
    browser.get(page.as_uri())
    wait(browser, "return !!document.querySelector('#space canvas')")
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, **size})  # as if turned
    wait(
        browser,
        "const plot = document.getElementById('space'), bar = document.querySelector('#space .cbfills'); "
        "if (!bar || plot._fullLayout.width !== plot.clientWidth) return false; "
        "const box = bar.getBoundingClientRect(); "
        f"return {'box.width > box.height' if width == 400 else 'box.width < box.height'}",
    )
    ratios = browser.execute_script(CONTRAST)
    assert len(ratios) > 60
    assert [(ratio, text) for ratio, text in ratios if ratio < 4.5] == []
    seen = browser.execute_script("""
        const root = document.documentElement, plot = document.getElementById("space").getBoundingClientRect();
        const bar = document.querySelector("#space .colorbar").getBoundingClientRect();
        return {across: root.scrollWidth - root.clientWidth,
                heads: [...document.querySelectorAll("h1, h2, h3")].map(h => h.textContent),
                paper: getComputedStyle(document.body).backgroundColor,
                images: [...document.images].map(i => getComputedStyle(i.parentElement).backgroundColor),
                legible: [...document.images].every(
                    i => i.clientWidth >= parseFloat(i.style.getPropertyValue("--width"))),
                hints: [...document.querySelectorAll(".paper.wide + .hint")].length,
                inside: plot.left >= 0 && plot.right <= root.clientWidth + 1,
                bar: bar.left >= plot.left && bar.right <= plot.right + 1 && bar.top >= plot.top
                    && bar.bottom <= plot.bottom + 1};
    """)
    assert seen["across"] == 0
    assert len(set(seen["heads"])) == len(seen["heads"])
    assert (seen["paper"] == "rgb(255, 255, 255)") == (scheme == "light")
    assert set(seen["images"]) == {"rgb(255, 255, 255)"}
    assert seen["legible"]
    assert seen["inside"]
    assert seen["bar"]
    assert (seen["hints"] > 0) == (width == 400)
    problems = [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "ERROR")]
    assert problems == []
