"""Pictures from real images: the report, the local pages, a printed statement, and terminals of three widths.

    python scripts/screenshots.py WORKSPACE IMAGE [OUT]        OUT is docs/pictures unless given

WORKSPACE: any workspace, such as the one that `gmv-qdrant demo` makes. IMAGE: a file to drop on the page. Terminals and
the statement, of the latest recorded payout if there is one, are for the eye of whoever changes them:
OUT/terminal-*.png, OUT/statement.pdf.
Needs Chromium and its driver (apt-get install chromium chromium-driver), and the `test` extra.
"""

from __future__ import annotations

import base64
import fcntl
import html
import os
import pty
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import termios
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


def in_terminal(arguments: list[str], columns: int) -> str:
    """What a command shows on a terminal so wide."""
    mine, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    command = [sys.executable, "-m", "gmv_qdrant", *arguments]
    environment = {**os.environ, "TERM": "xterm-256color"}
    environment.pop("COLUMNS", None)
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environment) as process:
        os.close(its)
        shown = b""
        try:
            while block := os.read(mine, 65536):
                shown += block
        except OSError:  # how a terminal says that nobody writes to it any more
            pass
        process.wait()
    os.close(mine)
    return shown.decode().replace("\r\n", "\n")


def terminals(driver: Any, workspace: Workspace, folder: Path, out: Path) -> None:
    """Answers on terminals of 50, 80 and 200 columns."""
    image = workspace.sql("SELECT uri FROM generated ORDER BY uri LIMIT 1").fetchall()[0][0]
    asked = {
        "help": ["--help"],
        "status": ["status"],
        "credits": ["credits", "--interval", "95"],
        "explain": ["explain", image, "-k", "6"],
        "payout": ["payout", "--budget", "1000", "--currency", "EUR"],
    }
    for name, arguments in asked.items():
        for columns in (50, 80, 200):
            text = in_terminal(["-w", str(workspace.path), *arguments], columns)
            page = folder / f"{name}-{columns}.html"
            page.write_text(
                f"<meta charset=utf-8><body style='background:#111;color:#eee;margin:12px'>"
                f"<pre style='font:14px/1.3 monospace;width:{columns}ch;white-space:pre-wrap;word-break:break-all'>"
                f"{html.escape(text)}</pre>"
            )
            size = (columns * 9 + 40, 24 * (text.count("\n") + 4))
            shoot(driver, page.as_uri(), out / f"terminal-{name}-{columns}.png", size)


def statement(driver: Any, workspace: Workspace, folder: Path, out: Path) -> None:
    """The first name's statement of the latest recorded payout, as it is printed."""
    if not (recorded := workspace.payouts()):
        return
    rows = workspace.payout_record(recorded[-1]["payout"])
    name = next(row["owner"] for row in rows if row["owner"])
    driver.get(workspace.statement(name, folder / "statement.html").as_uri())
    printed = driver.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.69})
    (out / "statement.pdf").write_bytes(base64.b64decode(printed["data"]))


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
            terminals(driver, workspace, Path(folder), out)
            statement(driver, workspace, Path(folder), out)
        finally:
            driver.quit()
            server.should_exit = True


if __name__ == "__main__":
    main(
        Workspace(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3] if len(sys.argv) > 3 else "docs/pictures")
    )
