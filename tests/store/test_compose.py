"""docker-compose.yml and .env.example: pinned, keyed, and with a health check that works."""

from __future__ import annotations

import http.server
import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from qdrant_client.http import models as m

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
SERVICES: dict[str, Any] = yaml.safe_load(TEXT)["services"]


def test_every_service_is_pinned_and_keyed_and_keeps_its_data() -> None:
    assert {name for name, s in SERVICES.items() if "cluster" in s.get("profiles", [])} == {
        "node-1",
        "node-2",
        "node-3",
    }
    for service in SERVICES.values():
        version = re.fullmatch(r"qdrant/qdrant:v1\.(\d+)\.\d+", service["image"])
        assert version
        assert int(version[1]) >= 18, "adding a named vector to a collection needs 1.18"
        assert service["environment"]["QDRANT__SERVICE__API_KEY"].startswith("${QDRANT_API_KEY:?")
        assert service["volumes"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


DOCUMENTED = {
    "SERVICE": {"API_KEY", "READ_ONLY_API_KEY", "JWT_RBAC", "MAX_REQUEST_SIZE_MB"},
    "CLUSTER": {"ENABLED"},
    "STORAGE__COLLECTION": {"REPLICATION_FACTOR"},
}
"""Of Qdrant's config.yaml; those of a collection's strict mode are the fields of its model."""


def test_every_setting_is_one_of_qdrants() -> None:
    strict = {name.upper() for name in m.StrictModeConfig.model_fields}
    known = {
        "QDRANT__TELEMETRY_DISABLED",
        *(f"QDRANT__{part}__{name}" for part, names in DOCUMENTED.items() for name in names),
        *(f"QDRANT__STORAGE__COLLECTION__STRICT_MODE__{name}" for name in strict),
    }
    assert set(re.findall(r"QDRANT__\w+", TEXT)) - {"QDRANT__"} <= known


def test_the_cluster_is_one() -> None:
    first, *others = (SERVICES[f"node-{n}"] for n in (1, 2, 3))
    assert first["command"] == "./qdrant --uri http://node-1:6335"
    for n, node in enumerate(others, start=2):
        assert node["command"] == f"./qdrant --bootstrap http://node-1:6335 --uri http://node-{n}:6335"
    assert all(node["environment"]["QDRANT__CLUSTER__ENABLED"] == "true" for node in (first, *others))


def test_the_example_names_every_variable() -> None:
    example = (ROOT / ".env.example").read_text()
    for name in set(re.findall(r"\$\{(\w+)", TEXT)):
        assert re.search(rf"^(# )?{name}=", example, re.MULTILINE), name


@pytest.mark.skipif(shutil.which("bash") is None, reason="the health check is written for bash")
@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_tells_ready_from_not(status: int, healthy: bool) -> None:
    class Ready(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Ready) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        check = SERVICES["qdrant"]["healthcheck"]["test"][1:]
        command = [part.replace("$$", "$").replace("6333", str(server.server_port)) for part in check]
        code = subprocess.run(command, timeout=20).returncode
        server.shutdown()
        thread.join()
    assert (code == 0) == healthy
