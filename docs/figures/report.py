"""Takes the pictures of the report: python docs/figures/report.py runs/quickstart/report.html docs/figures

It needs Pillow, selenium, chromium and chromedriver.
"""

import base64
import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = ("headless=new", "no-sandbox", "disable-gpu", "use-angle=swiftshader", "enable-unsafe-swiftshader")
TALL = 1500  # px of each page in the picture of several
GAP = 24  # px


def pages(report: Path) -> dict[tuple[int, str], tuple[Image.Image, int, int]]:
    """Return the whole page as pictures, and where its surface begins and ends: {(width, theme): (picture, y, y)}."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS, "hide-scrollbars", f"user-data-dir={tempfile.mkdtemp()}"):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    taken = {}
    try:
        for width, theme in ((1200, "light"), (1200, "dark"), (400, "light"), (400, "dark")):
            preference = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
            size = {"width": width, "height": TALL, "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", preference)
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            driver.get(report.resolve().as_uri())
            drawn = "return !!document.querySelector('#space canvas') && !!document.querySelector('#space .cbaxis')"
            WebDriverWait(driver, 60).until(lambda d, drawn=drawn: d.execute_script(drawn))
            height, first, last = driver.execute_script(
                "const of = e => e.getBoundingClientRect(), plot = document.getElementById('space');"
                "return [document.documentElement.scrollHeight, of(plot.closest('section').querySelector('h2')).top + "
                "scrollY - 16, of(plot).bottom + scrollY + 16]"
            )
            clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
            shot = {"format": "png", "captureBeyondViewport": True, "clip": clip}
            data = driver.execute_cdp_cmd("Page.captureScreenshot", shot)["data"]
            taken[width, theme] = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), int(first), int(last)
    finally:
        driver.quit()
    return taken


def main(report: str, out: str) -> None:
    """Write the two pictures."""
    taken = pages(Path(report))
    page, first, last = taken[1200, "light"]
    page.crop((0, first, 1200, last)).save(Path(out) / "tutorial-report.png", optimize=True)
    tiles = []
    for (width, theme), (picture, first, _) in taken.items():
        top = 0 if theme == "light" else first
        tiles.append(picture.crop((0, top, width, top + TALL)))
    sheet = Image.new("RGB", (sum(tile.width for tile in tiles) + 3 * GAP, TALL), "#808080")
    at = 0
    for tile in tiles:
        sheet.paste(tile, (at, 0))
        at += tile.width + GAP
    sheet.resize((sheet.width // 2, TALL // 2), Image.LANCZOS).save(Path(out) / "report-pages.png", optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
