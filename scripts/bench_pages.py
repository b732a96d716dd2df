"""Time of the report and of each local page, against the bare SQL behind it.

python scripts/bench_pages.py WORKSPACE       a workspace with many rows; tests/synthetic.py makes one
"""

from __future__ import annotations

import http.client
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import uvicorn

from gmv_qdrant import ValueFunction, Workspace
from gmv_qdrant.report.queries import Snapshot
from gmv_qdrant.web.app import application

PAGES = (
    "/",
    "/owners?sort=name",
    "/training",
    "/training?page=500",
    "/training?owner=owner+3",
    "/generated?sort=distance-down",
    "/generated/5",
    "/training/5",
    "/pictures/training/5/96",
    "/sql?query=FROM+generated",
)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main(workspace: Workspace) -> None:
    arguments = ValueFunction().sql()
    selects = {
        "image_values": f"SELECT count(value), sum(value) FROM image_values({arguments})",
        "credits by owner": f"FROM credits('owner', {arguments})",
        "effective contributors": f"SELECT avg(effective) FROM effective_contributors({arguments})",
    }
    for name, select in selects.items():
        print(f"bare SQL, {name:<28}{seconds(lambda: workspace.sql(select).fetchall()):8.2f} s")  # noqa: B023
    print(f"snapshot{'':<30}{seconds(lambda: Snapshot.take(workspace.published, ValueFunction())):8.2f} s")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "report.html"
        taken = seconds(lambda: workspace.report(target))
        print(f"report{'':<32}{taken:8.2f} s  {target.stat().st_size / 1024:,.0f} KB")
    app = application(workspace.path, workspace.published, workspace.settings)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, lifespan="off"))
    threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True).start()
    connection = http.client.HTTPConnection("127.0.0.1", listening.getsockname()[1])

    def ask(path: str) -> None:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, path

    print(f"first page after a change {'':<12}{seconds(lambda: ask('/')):8.2f} s")
    for path in PAGES:
        best = min(seconds(lambda: ask(path)) for _ in range(3))  # noqa: B023
        print(f"{path:<38}{best:8.3f} s")
    server.should_exit = True


if __name__ == "__main__":
    main(Workspace(sys.argv[1]))
