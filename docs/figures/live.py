"""Takes the pictures of the live page, of a job of four ranks: python docs/figures/live.py docs/figures

The job runs, one of its ranks is stopped, and the job ends. It needs mpirun, Pillow, selenium, chromium and
chromedriver.
"""

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

TRAIN = ("--epochs", "200", "--flush-seconds", "1", "--heartbeat-timeout", "5", "--checkpoint-every", "none")
# of each picture: the job's state, width in px, colours
SHOTS = (("running", 1200, "light"), ("lost", 1200, "dark"), ("lost", 400, "light"), ("ended", 1200, "light"))
STATES = "[...document.querySelectorAll('#ranks tr')].map(r => r.dataset.state).join()"
GAP = 24  # px


def browser() -> webdriver.Chrome:
    """Start a browser."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "hide-scrollbars", f"user-data-dir={tempfile.mkdtemp()}"):
        options.add_argument(f"--{flag}")
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def shots(driver: webdriver.Chrome, state: str) -> list[Image.Image]:
    """Take the pictures of a state."""
    taken = []
    for _, width, theme in (shot for shot in SHOTS if shot[0] == state):
        preference = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", preference)
        metrics = {"width": width, "height": 300, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        time.sleep(3)
        tall = driver.execute_script("return document.documentElement.scrollHeight")
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**metrics, "height": tall})
        time.sleep(1)
        data = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]
        taken.append(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    return taken


def main(out: str) -> None:
    """Write the picture."""
    run = Path(tempfile.mkdtemp()) / "quickstart"
    lsam = [sys.executable, "-m", "lsam_hpc"]
    command = ["mpirun", "--oversubscribe", "-n", "4", *lsam, "train", *TRAIN, "--out", str(run)]
    job = subprocess.Popen(command)
    driver, page, pictures = browser(), None, []
    try:
        wait = WebDriverWait(driver, 300).until
        wait(lambda _: (run / "job.lock").exists() and (run / "rank-0003.h5").exists())
        page = subprocess.Popen([*lsam, "report", str(run), "--live"], stdout=subprocess.PIPE, text=True)
        driver.get(page.stdout.readline().split()[1])
        wait(lambda d: d.execute_script(f"return {STATES} === 'running,running,running,running'"))
        time.sleep(15)
        pictures += shots(driver, "running")
        rank = json.loads((run / "job.lock").read_text().splitlines()[0])["processes"][2]["number"]
        os.kill(rank, signal.SIGSTOP)
        wait(lambda d: d.execute_script(f"return {STATES} === 'running,running,lost,running'"))
        pictures += shots(driver, "lost")
        os.kill(rank, signal.SIGCONT)
        wait(lambda d: d.execute_script(f"return {STATES} === 'ended,ended,ended,ended'"))
        pictures += shots(driver, "ended")
        page.send_signal(signal.SIGINT)
    finally:
        driver.quit()
        for process in filter(None, (page, job)):
            process.terminate()
            process.wait()
    wide, narrow = [p for p in pictures if p.width == 1200], next(p for p in pictures if p.width == 400)
    tall = max(sum(p.height for p in wide) + GAP * (len(wide) - 1), narrow.height)
    sheet = Image.new("RGB", (1600 + GAP, tall), "#808080")
    at = 0
    for picture in wide:
        sheet.paste(picture, (0, at))
        at += picture.height + GAP
    sheet.paste(narrow, (1200 + GAP, 0))
    size = (sheet.width * 5 // 8, tall * 5 // 8)
    sheet.resize(size, Image.LANCZOS).save(Path(out) / "live.png", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
