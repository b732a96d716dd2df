"""The local pages: in a real browser, and against those who'd misuse them."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import uvicorn
from filelock import FileLock
from PIL import Image
from synthetic_data import synthetic

from gmv_qdrant import SettingsError, Workspace
from gmv_qdrant.web import app
from gmv_qdrant.web.middleware import is_loopback

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
)


@contextlib.contextmanager
def served(workspace: Workspace, host: str = "127.0.0.1", **options: Any) -> Iterator[tuple[int, Any]]:
    """The pages on a free port of loopback; ``host`` is where the guard believes they are."""
    pages = app.application(workspace.path, workspace.published, workspace.settings, host, **options)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(pages, log_level="error", access_log=False, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1], pages
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def text(self) -> str:
        return self.body.decode()


def ask(port: int, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        return Answer(connection.getresponse())
    finally:
        connection.close()


def upload(port: int, data: bytes, name: str = "mine.png", path: str = "/contributors") -> Answer:
    head = f'--edge\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
    body = head.encode() + data + b"\r\n--edge--\r\n"
    return ask(port, path, "POST", body, Content_Type="multipart/form-data; boundary=edge")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Workspace]]:
    """60 generated images against 120 training images of seven owners."""
    workspace = synthetic(tmp_path_factory.mktemp("serve") / "w", generated=60, training=120, images=True)
    with served(workspace) as (port, _):
        yield port, workspace


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Real images through the real pipeline: 8x8 handwritten digits, half of them valued against the other half."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("digits")
    images = (load_digits().images[:120] * 15.9).astype(np.uint8)
    for kind, chosen in (("training", images[:90]), ("generated", images[90:])):
        (folder / kind).mkdir()
        for i, pixels in enumerate(chosen):
            Image.fromarray(pixels).resize((16, 16)).save(folder / kind / f"{i:03d}.png")
    made = Workspace.init(folder / "w", encoder="pixels:16", distance="l2@16", quality="piqe", candidates=40)
    made.ingest([folder / "training"], owner="<b>Ada</b>")
    made.value([folder / "generated"])
    return made


# -- what the pages say --------------------------------------------------------------------------------------


@pytest.mark.parametrize("generated", [0, 1])
def test_every_page_of_a_nearly_empty_workspace(tmp_path: Path, generated: int) -> None:
    workspace = synthetic(tmp_path / "w", generated=generated, training=generated * 3)
    with served(workspace) as (port, _):
        for path in ("/", "/owners", "/training", "/generated"):
            answer = ask(port, path)
            assert answer.status == 200, path
            assert answer.text.count("<h1>") == 1


def test_choices_change_values_and_stay_in_links(small: tuple[int, Workspace]) -> None:
    port, workspace = small
    page = ask(port, "/generated/3?k=4&temperature=0.05&no_quality=1").text
    found = workspace.explain("generated-3.png", k=4, temperature=0.05, quality_weighted=False)[1]
    first = found.project("contribution").fetchall()[0]
    assert page.count("<li>") == 4
    assert f"<b>{first[-1]:.4f}</b>" in page
    assert "k=4&amp;temperature=0.05&amp;no_quality=1" in page
    assert ask(port, "/generated?batch=batch+1").text.count("<li>") == 30


def test_pages_sort_and_end(small: tuple[int, Workspace]) -> None:
    port, workspace = small
    best = workspace.credits("image", top=1).fetchall()[0]
    assert f'title="{best[1]}"' in ask(port, "/training").text.partition("</li>")[0]
    assert ask(port, "/training").text.count("<li>") == app.IMAGES
    assert ask(port, "/training?page=3").text.count("<li>") == 120 - 2 * app.IMAGES
    assert 'rel="next"' not in ask(port, "/training?page=3").text
    assert ask(port, "/training?page=99").text == ask(port, "/training?page=3").text, "the last page"
    assert ask(port, "/training?page=-1&sort=nonsense").status == 200
    assert ask(port, "/training?owner=owner+3&page=1").text.count("<li>") == 17


def test_what_is_not_there_is_a_sentence(small: tuple[int, Workspace]) -> None:
    port, _ = small
    for path in (
        "/training/999",
        "/generated/99999999999",
        "/pictures/training/999/96",
        "/pictures/training/1/97",
        "/nowhere",
    ):
        answer = ask(port, path)
        assert answer.status == 404, path
        assert 'role="alert"' in answer.text
    assert "k is a whole number" in ask(port, "/?k=many").text
    assert ask(port, "/?k=0").status == 400
    assert "no calibration" in ask(port, "/?calibration=mine").text


def test_pictures(small: tuple[int, Workspace]) -> None:
    port, workspace = small
    shown = ask(port, "/pictures/training/1/96")
    assert shown.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(shown.body)).size == (96, 96), "eight pixels in whole steps"
    words = ask(port, "/pictures/generated/1/96")
    assert words.headers["content-type"] == "image/svg+xml"
    assert "no longer" in words.text
    assert (workspace.path / "thumbnails").is_dir()


# -- SQL ------------------------------------------------------------------------------------------------------


# -- who may ask ------------------------------------------------------------------------------------------------


def test_another_name_is_refused(small: tuple[int, Workspace]) -> None:
    port, _ = small
    assert ask(port, "/", Host=f"evil.example:{port}").status == 421
    assert ask(port, "/", Host=f"127.0.0.1.evil.example:{port}").status == 421
    assert ask(port, "/", Host=f"192.168.1.5:{port}").status == 421
    assert ask(port, "/", Host=f"localhost:{port}").status == 200
    assert ask(port, "/", Host=f"[::1]:{port}").status == 200


def test_other_sites_pages_are_refused(small: tuple[int, Workspace]) -> None:
    port, _ = small
    for site in ("cross-site", "same-site"):
        assert ask(port, "/owners", Sec_Fetch_Site=site).status == 403
        assert ask(port, "/contributors", "POST", b"", Sec_Fetch_Site=site).status == 403
        assert ask(port, "/", Sec_Fetch_Site=site).status == 200
    assert ask(port, "/owners", Sec_Fetch_Site="same-origin").status == 200
    assert ask(port, "/", "DELETE").status == 405


def test_headers_allow_one_script_and_nothing_else(small: tuple[int, Workspace]) -> None:
    port, _ = small
    for path in ("/", "/owners", "/nowhere", "/pictures/training/1/96"):
        headers = ask(port, path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
    page = ask(port, "/").text
    assert page.count("<script") == 1
    assert " style=" not in page
    assert " onclick" not in page


def test_a_token_is_asked_for_when_bound_wider(tmp_path: Path) -> None:
    workspace = synthetic(tmp_path / "w", generated=1, training=3)
    with served(workspace, host="0.0.0.0") as (port, app):
        assert len(app.token) >= 32
        assert ask(port, "/").status == 401
        assert ask(port, "/?token=wrong").status == 401
        assert ask(port, "/", Cookie="gmv_token=wrong").status == 401
        entered = ask(port, f"/owners?q=a&token={app.token}")
        assert entered.status == 303
        assert entered.headers["location"] == "/owners?q=a"
        cookie = entered.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert ask(port, "/", Cookie=cookie.partition(";")[0]).status == 200
        assert ask(port, "/", Host="evil.example", Cookie=cookie.partition(";")[0]).status == 421
        assert ask(port, f"//evil.example/?token={app.token}").headers["location"] == "/evil.example/"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("box", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_a_port_that_is_taken_is_a_sentence(small: tuple[int, Workspace]) -> None:
    port, workspace = small
    with pytest.raises(SettingsError, match=f"{port} can't be listened on"):
        workspace.serve(port=port)


# -- an image to drop -------------------------------------------------------------------------------------------


def test_a_dropped_image_has_the_contributors_it_would_be_valued_with(digits: Workspace) -> None:
    source = digits.path.parent / "generated" / "004.png"
    expected = digits.explain(str(source), k=10)[1].project("rank, uri, contribution").fetchall()
    before = (
        digits.sql("SELECT count(*) FROM generated").fetchall(),
        digits.sql("SELECT count(*) FROM runs").fetchall(),
    )
    with served(digits) as (port, _):
        answer = upload(port, source.read_bytes(), '"><script>x.png', "/contributors?k=10")
        assert answer.status == 200
        at = [answer.text.index(f'title="{row[1]}"') for row in expected]
        assert at == sorted(at)
        assert answer.text.count("<li>") == 10
        assert f"<b>{expected[0][-1]:.4f}</b>" in answer.text
        assert "<script>x" not in answer.text
        assert "&lt;b&gt;Ada&lt;/b&gt;" in answer.text
        assert "data:image/jpeg;base64," in answer.text
    assert (
        digits.sql("SELECT count(*) FROM generated").fetchall(),
        digits.sql("SELECT count(*) FROM runs").fetchall(),
    ) == before


def test_what_can_not_be_looked_up_is_a_sentence(digits: Workspace) -> None:
    picture = (digits.path.parent / "generated" / "004.png").read_bytes()
    with served(digits) as (port, _):
        assert "not an image" in upload(port, b"hello").text
        assert upload(port, b"").status == 400
        with FileLock(digits.path / ".writing.lock"):
            busy = upload(port, picture)
        assert busy.status == 503
        assert "a run is working on this workspace" in busy.text
        assert upload(port, picture).status == 200


def test_too_much_is_refused_early(small: tuple[int, Workspace]) -> None:
    port, _ = small
    assert ask(port, "/contributors", "POST", b"x", Content_Length=str(app.UPLOAD_BYTES + 1)).status == 413
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.suppress(ConnectionError):  # it may hang up while we are still sending
        chunks = (b"--edge\r\n" + b"x" * (1 << 20) for _ in range(40))
        connection.request(
            "POST",
            "/contributors",
            chunks,
            {"Content-Type": "multipart/form-data; boundary=edge"},
            encode_chunked=True,
        )
        assert connection.getresponse().status in (400, 413)
    connection.close()
    assert ask(port, "/").status == 200


def test_a_run_is_not_kept_out(digits: Workspace, tmp_path: Path) -> None:
    """Between two lookups the store is free."""
    shutil.copytree(digits.path.parent / "generated", tmp_path / "more")
    picture = (digits.path.parent / "generated" / "005.png").read_bytes()
    with served(digits) as (port, _):
        assert upload(port, picture).status == 200
        digits.value([tmp_path / "more"], batch="again")
        assert ask(port, "/generated?batch=again").text.count("<li>") == 30
        assert upload(port, picture).status == 200


def test_many_at_once(small: tuple[int, Workspace]) -> None:
    port, _ = small
    paths = [
        "/",
        "/owners",
        "/training",
        "/generated",
        "/generated/2",
        "/owners",
        "/pictures/training/2/96",
    ] * 4
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda path=path: found.append(ask(port, path).status)) for path in paths
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * len(paths)


# -- in a browser -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs Chromium and its driver (apt-get install chromium chromium-driver); CI has them")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.add_argument("--window-size=1200,900")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


def no_complaints(browser: Any) -> None:
    """Nothing was blocked by the policy, nothing failed to load."""
    assert [line["message"] for line in browser.get_log("browser") if "404" not in line["message"]] == []


def all_of(browser: Any, selector: str) -> list[Any]:
    return list(browser.find_elements("css selector", selector))


def one(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def wait_for(browser: Any, selector: str) -> Any:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if found := all_of(browser, selector):
            return found[0]
        time.sleep(0.05)
    raise AssertionError(f"{selector} never came: {browser.page_source[:500]}")


def test_browser_sorts_and_filters_owners(small: tuple[int, Workspace], browser: Any) -> None:
    port, workspace = small
    browser.get(f"http://127.0.0.1:{port}/owners")
    names = [cell.text for cell in all_of(browser, "#owners tbody th")]
    assert names == [row[0] for row in workspace.credits("owner").fetchall()]
    browser.find_element("link text", "Owner").click()
    assert [cell.text for cell in all_of(browser, "#owners tbody th")] == sorted(names)
    one(browser, "#owners thead th:first-child a").click()
    assert [cell.text for cell in all_of(browser, "#owners tbody th")] == sorted(names, reverse=True)
    assert one(browser, "#owners thead th").get_attribute("aria-sort") == "descending"
    one(browser, "input[type=search]").send_keys("ER 3\n")
    wait_for(browser, "#owners tbody tr:only-child")
    assert [cell.text for cell in all_of(browser, "#owners tbody th")] == ["owner 3"]
    browser.find_element("link text", "owner 3").click()
    assert "owner 3" in one(browser, "h1").text
    assert len(all_of(browser, ".gallery li")) == 17
    no_complaints(browser)


def test_browser_pages_through(small: tuple[int, Workspace], browser: Any) -> None:
    port, _ = small
    browser.get(f"http://127.0.0.1:{port}/training?k=5")
    seen = {card.get_attribute("href") for card in all_of(browser, ".gallery a.name")}
    for _ in range(2):
        one(browser, "a[rel=next]").click()
        assert "k=5" in browser.current_url
        seen |= {card.get_attribute("href") for card in all_of(browser, ".gallery a.name")}
    assert len(seen) == 120
    assert not all_of(browser, "a[rel=next]")
    one(browser, ".gallery a.name").click()
    assert one(browser, ".subject img").get_property("naturalWidth") == 384, "eight pixels in whole steps"
    no_complaints(browser)


def test_browser_drops_an_image(digits: Workspace, browser: Any) -> None:
    source = digits.path.parent / "generated" / "007.png"
    first = digits.explain(str(source))[1].fetchall()[0][1]
    with served(digits) as (port, _):
        browser.get_log("browser")
        browser.get(f"http://127.0.0.1:{port}/")
        one(browser, "#image").send_keys(str(source))
        browser.find_element("xpath", "//button[.='Show contributors']").click()
        assert wait_for(browser, "#contributors li .name").get_attribute("title") == first
        drop = """const bytes = Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0));
            const carried = new DataTransfer();
            carried.items.add(new File([bytes], "dropped <i>.png", {type: "image/png"}));
            window.dispatchEvent(new DragEvent("drop", {dataTransfer: carried, bubbles: true, cancelable: true}));"""
        browser.execute_script(drop, base64.b64encode(source.read_bytes()).decode())
        until = time.monotonic() + 30
        while one(browser, "h1").text != "dropped <i>.png" and time.monotonic() < until:
            time.sleep(0.05)
        assert one(browser, "h1").text == "dropped <i>.png"
        assert wait_for(browser, "#contributors li .name").get_attribute("title") == first
        no_complaints(browser)


def test_browser_runs_nothing_that_a_name_says(tmp_path: Path, browser: Any) -> None:
    hostile = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    workspace = synthetic(tmp_path / "w", generated=2, training=4)
    with workspace.ledger.write() as con:
        con.execute("UPDATE sources SET uri = $1 || training_key, owner = $1, label = $1", [hostile])
        con.execute(
            "UPDATE generated SET uri = $1 || generated_key, batch = $1, label = $1, attributes = to_json($1)",
            [hostile],
        )
    with served(workspace) as (port, _):
        for path in (
            "/",
            "/owners",
            "/training",
            f"/training?owner={quote(hostile)}",
            "/generated/1",
            "/training/1",
            f"/owners?q={quote(hostile)}",
            f"/?batch={quote(hostile)}",
        ):
            browser.get(f"http://127.0.0.1:{port}{path}")
            assert "owned" not in browser.title.split(" · ")[-1]
            assert browser.execute_script("return document.scripts.length") == 1
            assert not all_of(browser, "img[onerror]")
    report = workspace.report(tmp_path / "report.html")
    browser.get(report.as_uri())
    assert browser.title.startswith("Credit report")
    assert not all_of(browser, "script, img[onerror]")


@pytest.mark.parametrize("width", [390, 1200])
def test_browser_never_scrolls_sideways(
    small: tuple[int, Workspace], browser: Any, tmp_path: Path, width: int
) -> None:
    port, workspace = small
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    try:
        report = workspace.report(tmp_path / "report.html").as_uri()
        pages = [
            f"http://127.0.0.1:{port}{path}"
            for path in (
                "/",
                "/owners",
                "/training",
                "/generated/1",
                "/training/1",
                "/owners",
            )
        ]
        for page in (report, *pages):
            browser.get(page)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width, page
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "path", ["/", "/owners", "/training", "/generated", "/training/1", "/generated/1", "/no/where"]
)
def test_browser_finds_no_barrier(small: tuple[int, Workspace], browser: Any, path: str, scheme: str) -> None:
    """axe: names, roles, contrast, landmarks, order, in both schemes."""
    import axe_core_python

    port, _ = small
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(f"http://127.0.0.1:{port}{path}")
    browser.execute_script((Path(axe_core_python.__file__).parent / "axe.min.js").read_text())
    found = browser.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    assert [(one["id"], [node["target"] for node in one["nodes"]]) for one in found["violations"]] == []


def test_browser_is_used_by_keyboard_alone(small: tuple[int, Workspace], browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait

    port, _ = small
    browser.get(f"http://127.0.0.1:{port}/owners")
    one(browser, "body").send_keys(Keys.TAB)
    assert browser.switch_to.active_element.text == "Skip to the page"
    for _ in range(60):
        focused = browser.switch_to.active_element
        if focused.tag_name == "a" and focused.text == "owner 3":
            break
        focused.send_keys(Keys.TAB)
    else:
        raise AssertionError("no owner can be reached")
    focused.send_keys(Keys.ENTER)
    WebDriverWait(browser, 20).until(lambda here: "owner=owner" in here.current_url)
