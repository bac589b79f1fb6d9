"""`lsam report`: a self-contained page, opened in a real browser if one is installed."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

from lsam_hpc import InputError
from lsam_hpc.landscape.formats.loss_landscape import Surface
from lsam_hpc.landscape.report.report import on_surface
from lsam_hpc.tools.report import main
from lsam_hpc.train.config import TrainConfig
from lsam_hpc.train.models import mlp
from lsam_hpc.trajectory import CountSketch, Snapshots, TrajectoryWriter
from tests.helpers.landscapes import WORDS, write_run
from tests.helpers.logs import attributes, make_run

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
    for title in (
        "Are these chains samples?",
        "Where the chains went",
        "The loss around them",
        "Figures of other programs",
        "Ranks",
        "Options and origin",
    ):
        assert title in body
    assert body.count("<img") == body.count("alt=") == 3
    assert "default-src 'none'" in body


def test_a_page_without_a_surface_omits_the_plotting_library(run, tmp_path):
    assert main([str(run), "--surface", "0", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").stat().st_size < 2e6


def test_a_run_without_states_has_the_rest_of_the_page(tmp_path):
    path = make_run(tmp_path / "bare", rows=50)
    assert main([str(path)]) == 0
    text = (path / "report.html").read_text()
    assert "Not drawn: " in text
    assert "What each rank did" in text


def test_a_run_that_names_no_data_has_all_but_the_surface(tmp_path, capsys):
    # As of a Horovod script: the run's options do not say how to make model and data.
    path = write_run(tmp_path / "run")
    assert main([str(path)]) == 0
    text = (path / "report.html").read_text()
    assert "Where the chains went" in text
    assert "The loss around them" not in text
    assert "No surface of the loss: --data: expected " in text
    assert "None" not in re.sub(r"<img[^>]*>|<script>.*?</script>", "", text, flags=re.DOTALL)
    assert "no surface of the loss: --data: expected" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"--data: expected .*, found none"):
        main([str(path), "--surface", "5"])
    assert main([str(path), "--surface", "5", *WORDS[:-1]]) == 0
    assert "The loss around them" in (path / "report.html").read_text()


def test_bad_input(run, tmp_path):
    with pytest.raises(InputError, match="--surface: expected 2 points or more, or 0, found 1"):
        main([str(run), "--surface", "1"])
    with pytest.raises(InputError, match="--name: expected a name without folders"):
        main([str(run), "--name", "../r.html"])
    with pytest.raises(InputError, match="expected a run directory, found nothing"):
        main([str(tmp_path / "none")])


def test_the_loss_under_a_chain_is_linear_between_the_grid_s_points():
    x, y = np.array([0.0, 1, 3]), np.array([-1.0, 0, 5, 6])
    plane = 2 + 3 * x[None, :] - 0.5 * y[:, None]
    losses = on_surface(Surface(x, y, {"loss": plane}), np.array([[0, -1], [0.25, 3], [3, 6], [2.9, -0.1]]))
    np.testing.assert_allclose(losses, [2.5, 2 + 0.75 - 1.5, 2 + 9 - 3, 2 + 8.7 + 0.05], rtol=1e-12)
    np.testing.assert_allclose(on_surface(Surface(x, y, {"loss": plane}), np.array([[9.0, 9.0]])), [8])


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no chromium and chromedriver here")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for word in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "use-angle=swiftshader",
        "enable-unsafe-swiftshader",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "window-size=1200,900",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.get(page.as_uri())
        wait(driver, "return !!document.querySelector('#space canvas')")
        yield driver
    finally:
        driver.quit()


def wait(driver, script):
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 60).until(lambda d: d.execute_script(script))


@pytest.mark.slow("needs a browser")
def test_in_a_browser_every_control_works_and_nothing_leaves_the_machine(browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    def eye():
        return browser.execute_script("return {...document.getElementById('space')._fullLayout.scene.camera.eye}")

    assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    for button in browser.find_elements(By.CSS_SELECTOR, "[data-turn], [data-zoom], [data-reset]"):
        before = eye()
        button.send_keys(Keys.ENTER)  # with the keyboard
        wait(
            browser,
            f"return JSON.stringify(document.getElementById('space')._fullLayout.scene.camera.eye) != "
            f"'{json.dumps(before, separators=(',', ':'))}'",
        )
        assert button.text in browser.find_element(By.ID, "space-said").text
    assert eye() == {"x": 1.5, "y": 1.5, "z": 1.1}
    chains = Select(browser.find_element(By.ID, "chains"))
    assert [option.text for option in chains.options] == ["all", "rank 0", "rank 1"]
    chains.select_by_visible_text("rank 1")
    shown = "return document.getElementById('space').data.map(t => t.visible)"
    wait(browser, "return document.getElementById('space').data[1].visible == 'legendonly'")
    assert browser.execute_script(shown) == [True, "legendonly", True, True]
    chains.select_by_visible_text("all")
    wait(browser, "return document.getElementById('space').data[1].visible === true")
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
                heads: tables.every(t => t.caption && t.querySelector("th[scope=col]")),
                ids: [...document.querySelectorAll("nav a")].every(a => document.querySelector(a.hash))};
    """)
    assert page["lang"] == "en"
    assert page["levels"][0] == "H1"
    assert set(page["levels"][1:]) == {"H2"}
    assert (page["unnamed"], page["alts"], page["heads"], page["ids"]) == ([], 0, True, True)
