"""Pictures for the documentation, from real images: the report and the local pages in headless Chromium.

    python scripts/screenshots.py WORKSPACE IMAGE [OUT]        OUT is docs/pictures unless given

WORKSPACE: any workspace, such as the one that `gmv-qdrant demo` makes. IMAGE: a file to drop on the page.
Needs Chromium and its driver (apt-get install chromium chromium-driver), and the `test` extra.
"""

from __future__ import annotations

import shutil
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

from gmv_qdrant import Workspace
from gmv_qdrant.web.app import application

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
)
SETTLED = """return [...document.images].every(
    image => image.complete || image.getBoundingClientRect().top > innerHeight)"""
DESKTOP, PHONE = (1200, 1000), (390, 844)


def browser(profile: str) -> Any:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for flag in (*FLAGS.split(), f"--user-data-dir={profile}"):
        options.add_argument(flag)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def shoot(
    driver: Any, address: str | None, target: Path, size: tuple[int, int], *, dark: bool = False
) -> None:
    """One screen; address None: what is there already."""
    width, height = size
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    if address:
        driver.get(address)
    WebDriverWait(driver, 60).until(lambda here: here.execute_script(SETTLED))
    driver.save_screenshot(str(target))
    with Image.open(target) as picture:
        picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(target, optimize=True)
    print(f"{target} {target.stat().st_size / 1024:.0f} KB")


def main(workspace: Workspace, image: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    app = application(workspace.path, workspace.published, workspace.settings)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, lifespan="off"))
    threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True).start()
    here = f"http://127.0.0.1:{listening.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as folder:
        report = workspace.report(Path(folder) / "report.html", title="the demo").as_uri()
        driver = browser(f"{folder}/profile")
        try:
            shoot(driver, report, out / "report.png", (1200, 1500))
            shoot(driver, report + "#best-matched", out / "report-matches.png", (1200, 900))
            shoot(driver, report, out / "report-dark.png", DESKTOP, dark=True)
            shoot(driver, report, out / "report-phone.png", PHONE)
            shoot(driver, f"{here}/", out / "overview.png", DESKTOP)
            shoot(driver, f"{here}/owners?calibration=demo", out / "owners.png", (1200, 640))
            shoot(driver, f"{here}/generated?calibration=demo", out / "generated.png", DESKTOP)
            shoot(
                driver,
                f"{here}/generated/1?calibration=demo",
                out / "generated-image-dark.png",
                DESKTOP,
                dark=True,
            )
            shoot(driver, f"{here}/training", out / "training-phone.png", PHONE)
            driver.get(here)
            driver.find_element("css selector", "#image").send_keys(str(image.absolute()))
            driver.find_element("xpath", "//button[.='Show contributors']").click()
            driver.implicitly_wait(60)
            driver.find_element("css selector", "#contributors")
            shoot(driver, None, out / "dropped.png", DESKTOP)
        finally:
            driver.quit()
            server.should_exit = True


if __name__ == "__main__":
    main(
        Workspace(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3] if len(sys.argv) > 3 else "docs/pictures")
    )
