"""Figures of other programs in `lsam report`: which are shown, what their captions say, and links to PDF files."""

import re
from urllib.parse import unquote

import pytest

from lsam_hpc import cli
from lsam_hpc.landscape.report.figurefiles import caption
from tests.helpers.landscapes import MODULE, SPLIT_WORDS, WORDS, write_run
from tests.helpers.small_model import read

pytestmark = pytest.mark.usefixtures("torch_threads", "unrendered")


def lsam(*words):
    assert cli.main([*map(str, words)]) == 0


def shown(page):
    """Return the names of the other programs' figures on a page, in their order."""
    return re.findall(r"<figcaption>[^<]*File: figures/([^.;]+)\.", page.read_text())


@pytest.mark.slow("eight figures")
def test_only_figures_that_the_page_draws_itself_are_left_out(tmp_path):
    path = write_run(tmp_path / "run", states=60, sketches=True)
    lsam("trajectory", path, *SPLIT_WORDS, "--surface", "4", "--losses")
    lsam("trajectory", path, *SPLIT_WORDS, "--losses", "--name", "part")  # all of it is in the page's figure
    lsam("trajectory", path, *SPLIT_WORDS, "--surface", "4", "--split", "test", "--name", "test")
    lsam("trajectory", path, *SPLIT_WORDS, "--losses", "--loss", f"{MODULE}:wrong", "--name", "loss")
    lsam("trajectory", path, "--mark", "0@1", "--name", "marked")
    lsam("diagnose", path, "--from", "0.5")
    lsam("diagnose", path, "--components", "2", "--name", "components")
    lsam("report", path, *SPLIT_WORDS)
    assert shown(path / "report.html") == ["components", "loss", "marked", "test"]
    text = (path / "report.html").read_text()
    assert "losses: cross-entropy of 16 samples of the test data. File: figures/test.png" in text
    assert f"losses: {MODULE}:wrong of 24 samples of the train data. File: figures/loss.png" in text


def test_captions_of_states_and_samples(tmp_path):
    path = write_run(tmp_path / "run")
    short = ("--draws", "30", "--warmup", "5", "--chains", "2", "--leapfrog", "2", "--gamma", "5")
    lsam("predict", path, *WORDS, "--from", "0")
    lsam("outliers", path, *WORDS, "--count", "6")
    lsam("learning-coefficient", path, *WORDS, *short)
    lsam("surface", path, *WORDS, "--x=-1:1:3", "--y=-1:1:3")
    lsam("basins", path / "figures" / "surface-center-random.h5")
    said = {name: caption(path / "figures" / f"{name}.png") for name in ("predict", "outliers", "learning-coefficient")}
    rows = {name: read(path / "figures" / f"{name}.csv") for name in said}
    center = rows["predict"][0]
    assert said["predict"].startswith(
        "Accuracy against confidence of predictions of 30 samples of other data: center: "
    )
    assert f"center: {float(center['error']):.2f} % wrong, NLL {float(center['nll']):.3g}, cal" in said["predict"]
    best = min(rows["predict"], key=lambda row: float(row["nll"]))["predictor"]
    assert f"The lowest NLL is that of {best}." in said["predict"]
    assert said["outliers"].startswith(
        "The loss of each sample at 0@-2 and 0@-1 (cross-entropy of 30 samples of other "
    )
    cosine = min(float(row["cosine"]) for row in rows["outliers"] if row["cosine"])
    assert f"the most opposed pair has a cosine of {cosine:.2f}. File: figures/outliers.png" in said["outliers"]
    (llc,) = rows["learning-coefficient"]
    value, error = float(llc["lambda"]), float(llc["standard_error"])
    assert f"{value:.4g} ± {error:.2g} at center, of at most 7.5" in said["learning-coefficient"]
    assert f"(R-hat {float(llc['rhat']):.3f}, effective sample size " in said["learning-coefficient"]
    assert ", not to be used because of " in said["learning-coefficient"]
    basins = read(path / "figures" / "basins-surface-center-random.csv")
    count = f"{len(basins)} basin{'s' if len(basins) > 1 else ''}"
    expected = f"train_loss has {count}, its lowest minimum {min(float(row['value']) for row in basins):.3g}"
    text = caption(path / "figures" / "basins-surface-center-random.png")
    assert text.startswith("Minima (circles) and saddles (crosses) of surface-center-random.h5, and the tree in which ")
    assert expected in text


def test_the_figures_beside_a_merged_file_and_links_to_pdf_files(tmp_path):
    path = write_run(tmp_path / "run", states=24, sketches=True)
    merged = tmp_path / "one" / "merged.h5"
    merged.parent.mkdir()
    lsam("merge", path, merged)
    lsam("sharpness", merged, *WORDS, "--case", "average")
    lsam("outliers", merged, *WORDS, "--format", "pdf", "--name", "a figure")
    figures = merged.parent / "figures"
    assert {"sharpness.png", "a figure.pdf"} <= {file.name for file in figures.iterdir()}
    for words in ((), ("--out", tmp_path / "pages")):
        lsam("report", merged, "--surface", "0", "--quiet", *words)
        page = (words[1] if words else merged.parent) / "report.html"
        assert shown(page) == ["a figure", "sharpness"]
        (address,) = re.findall(r'<a href="([^"#]+)">Open the figure \(PDF\)</a>', page.read_text())
        assert (page.parent / unquote(address)).resolve() == (figures / "a figure.pdf").resolve()
        assert " " not in address
    (figures / "a figure.svg").write_text("<svg/>")
    lsam("report", merged, "--surface", "0", "--quiet")
    assert "(PDF)" not in (merged.parent / "report.html").read_text()
