"""The pages behind a proxy, in a notebook, and under people who mean no good."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from synthetic_data import synthetic

from gmv_qdrant import SettingsError, Workspace
from gmv_qdrant.web import app, server
from gmv_qdrant.web.server import Served


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return synthetic(tmp_path_factory.mktemp("outside") / "w", generated=6, training=12, images=True)


def serve(workspace: Workspace, **options: object) -> Served:
    """As a notebook does: inside a running event loop, so in the background."""

    async def started() -> Served:
        found = workspace.serve(port=0, **options)  # type: ignore[arg-type]
        assert isinstance(found, Served)
        return found

    return asyncio.run(started())


@pytest.fixture
def pages(workspace: Workspace) -> Iterator[Served]:
    served = serve(workspace)
    yield served
    served.stop()


def get(address: str, host: str | None = None) -> tuple[int, str]:
    request = urllib.request.Request(address, headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_notebook_gets_the_address_and_goes_on(pages: Served) -> None:
    assert get(pages.address)[0] == 200
    assert pages.address in repr(pages)
    assert f'href="{pages.address}"' in pages._repr_html_()


def test_two_can_be_served_at_once_and_one_stopped(workspace: Workspace, pages: Served) -> None:
    other = serve(workspace)
    other.stop()
    with pytest.raises(OSError, match="refused"):
        get(other.address)
    assert get(pages.address)[0] == 200


@pytest.mark.parametrize("stripped", [True, False])
def test_behind_a_proxy_every_link_has_its_path(workspace: Workspace, stripped: bool) -> None:
    served = serve(workspace, root_path="/tools/gmv/", allowed_hosts=["credits.example"])
    base, _, token = served.address.partition("/tools/gmv/")
    cookie = {"Cookie": "gmv_token=" + token.removeprefix("?token="), "Host": "credits.example"}
    try:
        for path in (
            "/",
            "/owners?rule=owner-shapley",
            "/training",
            "/generated",
            "/training/1",
            "/generated/1",
        ):
            asked = path if stripped else "/tools/gmv" + path
            request = urllib.request.Request(base + asked, headers=cookie)
            html = urllib.request.urlopen(request, timeout=30).read().decode()
            for attribute in ("href", "src", "action"):
                for part in html.split(f'{attribute}="')[1:]:
                    link = part.partition('"')[0]
                    assert link.startswith(("/tools/gmv/", "#", "data:")), (path, attribute, link)
        assert get(base + "/", host="credits.example")[0] == 401, "others can ask, so the token is needed"
        assert get(base + "/", host="elsewhere.example")[0] == 421
    finally:
        served.stop()


def test_a_thousand_half_open_connections_stop_nobody(pages: Served) -> None:
    port = int(pages.address.rsplit(":", 1)[1].strip("/"))
    half_open = [socket.create_connection(("127.0.0.1", port)) for _ in range(300)]
    try:
        for one in half_open[::2]:
            one.sendall(b"GET / HTTP/1.1\r\nHost: loc")
        assert get(pages.address)[0] == 200
    finally:
        for one in half_open:
            one.close()


def test_who_never_asks_is_hung_up_on(pages: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_SECONDS", 0.3)
    port = int(pages.address.rsplit(":", 1)[1].strip("/"))
    with socket.create_connection(("127.0.0.1", port), timeout=10) as silent:
        silent.sendall(b"GET / HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert silent.recv(1) == b"", "closed"


def test_a_flood_of_uploads_is_refused_not_queued(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, leave = threading.Semaphore(0), threading.Event()

    def slow(*_: object) -> None:
        entered.release()
        leave.wait(20)
        raise SettingsError("done")

    monkeypatch.setattr(app.Pages, "_contributors", slow)
    served = serve(workspace)
    body = b'--e\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\nx\r\n--e--\r\n'
    statuses: list[int] = []

    def send() -> None:
        kind = {"Content-Type": "multipart/form-data; boundary=e"}
        request = urllib.request.Request(served.address + "contributors", body, kind)
        try:
            urllib.request.urlopen(request, timeout=30)
        except urllib.error.HTTPError as error:
            statuses.append(error.code)

    threads = [threading.Thread(target=send) for _ in range(app.UPLOADS)]
    for thread in threads:
        thread.start()
    try:
        for _ in threads:
            assert entered.acquire(timeout=20)
        started = time.monotonic()
        send()
        assert statuses == [503]
        assert time.monotonic() - started < 10
        assert get(served.address + "owners")[0] == 200
    finally:
        leave.set()
        for thread in threads:
            thread.join(30)
        served.stop()
    assert sorted(statuses) == [400, 400, 503]


def test_what_can_be_chosen_is_offered(workspace: Workspace, pages: Served) -> None:
    html = get(pages.address + "owners")[1]
    assert "<option>batch 0</option><option>batch 1</option>" in html
    assert "<option>owner-shapley</option>" in html
    status, text = get(pages.address + "owners?rule=by-size")
    assert status == 400
    assert "owner-shapley" in text
    shapley = get(pages.address + "owners?rule=owner-shapley")[1]
    assert "<option selected>owner-shapley</option>" in shapley


def test_a_picture_of_what_was_withdrawn_is_gone(tmp_path: Path) -> None:
    import tiny_workspace

    tiny_workspace.write(tmp_path / "images", range(6))
    made = Workspace.init(tmp_path / "w", **tiny_workspace.SETTINGS)
    made.ingest([tmp_path / "images"], owner="Ada")
    served = serve(made)
    try:
        assert get(served.address + "training/1")[0] == 200
        assert urllib.request.urlopen(served.address + "pictures/training/1/96").status == 200
        Workspace(tmp_path / "w").withdraw(owner="Ada")
        assert get(served.address + "pictures/training/1/96")[0] == 404
        assert get(served.address + "training/1")[0] == 404
        assert not list((tmp_path / "w").rglob("*.jpg")), "and nothing of it is kept"
    finally:
        served.stop()
