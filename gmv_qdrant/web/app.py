"""The local pages: the report's figures to browse, sort and filter; an image to drop.

Server-rendered; nothing here writes to the ledger, so there is nothing that a forged request could change.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pyarrow as pa
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from gmv_qdrant.errors import GmvError, LedgerLocked, SettingsError, StoreUnavailable
from gmv_qdrant.ledger import queries
from gmv_qdrant.ledger.publish import Published
from gmv_qdrant.ledger.queries import ValueFunction, allowed_places
from gmv_qdrant.report import formatting, page
from gmv_qdrant.report import queries as report_queries
from gmv_qdrant.report.queries import Row, Snapshot
from gmv_qdrant.report.snapshots import Snapshots
from gmv_qdrant.report.thumbnails import FULL, LARGE, SMALL, Thumbnails
from gmv_qdrant.settings import Settings
from gmv_qdrant.web.attribute_upload import Uploads
from gmv_qdrant.web.middleware import Guard

IMAGES = 48
"""On one page; divisible by most numbers of columns."""
MATCHES = 60
UPLOAD_BYTES = 32 << 20
UPLOADS = 2
"""Images that are looked up at the same time: each is decoded, and may be large."""
OWNER_RULES = ("shares", "owner-shapley")
LOOK_UP = {"training": report_queries.training_names, "generated": report_queries.generated_names}
CHOICES = ("k", "temperature", "calibration", "no_quality", "batch", "rule")
"""Names of the value function in an address."""


class Pages:
    """One handler for each page."""

    def __init__(self, root: Path, published: Published, settings: Settings) -> None:
        self.root, self.published, self.settings = root, published, settings
        self.snapshots = Snapshots(published)
        self.thumbnails = Thumbnails(root, allowed_places(published))
        self.uploads = Uploads(root, settings, published)
        self.env = page.environment("gmv_qdrant.web")
        self._looking = threading.BoundedSemaphore(UPLOADS)

    def routes(self) -> list[Route]:
        return [
            Route("/", self.overview),
            Route("/owners", self.owners),
            Route("/training", self.training),
            Route("/generated", self.generated),
            Route("/claims", self.claims),
            Route("/training/{key:int}", self.training_image),
            Route("/generated/{key:int}", self.generated_image),
            Route("/pictures/{kind}/{key:int}/{size:int}", self.picture),
            Route("/contributors", self.contributors, methods=["POST"]),
            Route("/style.css", self.style),
            Route("/page.js", self.script),
        ]

    # -- what every page needs ---------------------------------------------------------------------------

    def _choices(self, request: Request) -> dict[str, str]:
        return {name: request.query_params[name] for name in CHOICES if request.query_params.get(name)}

    def _function(self, choices: Mapping[str, str]) -> ValueFunction:
        try:
            k = int(choices.get("k", 30))
            temperature = float(choices["temperature"]) if "temperature" in choices else None
        except ValueError:
            raise SettingsError("k is a whole number, and temperature a number") from None
        return queries.value_function(
            self.published,
            k=k,
            temperature=temperature,
            quality_weighted="no_quality" not in choices,
            batch=choices.get("batch"),
            calibration=choices.get("calibration"),
        )

    def _page(self, template: str, request: Request, status: int = 200, **values: Any) -> HTMLResponse:
        choices = self._choices(request)
        root: str = request.scope.get("root_path", "")

        def url(path: str, **changes: Any) -> str:
            wanted = {
                name: str(value) for name, value in {**choices, **changes}.items() if value not in (None, "")
            }
            return root + path + ("?" + urlencode(wanted) if wanted else "")

        def picture(kind: str, image: Row, size: int = SMALL) -> page.Shown:
            return page.Shown(f"{root}/pictures/{kind}/{image['key']}/{size}")

        values |= {
            "url": url,
            "root": root,
            "address": request.scope["path"],
            "there": report_queries.choices(self.published),
            "rules": OWNER_RULES,
            "here": request.scope["path"].removeprefix(root) or "/",
            "choices": {name: choices.get(name, "") for name in CHOICES},
            "kept": {
                name: value for name, value in request.query_params.items() if name not in (*CHOICES, "page")
            },
            "workspace": self.root.name,
            "picture": picture,
            "address_of": lambda kind, image: url(f"/{kind}/{image['key']}"),
        }
        return HTMLResponse(self.env.get_template(template).render(values), status)

    def refused(self, request: Request, error: Exception) -> Response:
        """An error of the tool is a sentence on a page."""
        status = 503 if isinstance(error, LedgerLocked | StoreUnavailable) else 400
        if isinstance(error, HTTPException):
            status = error.status_code
        text = str(error.detail) if isinstance(error, HTTPException) else str(error)
        return self._page("message.html", request, status, title="That didn't work", text=text)

    def _number(self, request: Request, found: int, each: int = IMAGES) -> tuple[int, int]:
        """The page's number, from 1 to the last, and how many there are."""
        text, pages = request.query_params.get("page", "1"), max(1, math.ceil(found / each))
        return min(max(1, int(text)), pages) if text.isdecimal() and len(text) < 10 else 1, pages

    def _snapshot(self, request: Request) -> Snapshot:
        choices = self._choices(request)
        rule = choices.get("rule", OWNER_RULES[0])
        if rule not in OWNER_RULES:
            raise SettingsError(
                f"there is no rule {rule!r} for owners: choose one of {', '.join(OWNER_RULES)}"
            )
        return self.snapshots.get(self._function(choices), rule)

    def _sort(self, request: Request, sorts: Mapping[str, str]) -> str:
        sort = request.query_params.get("sort", "")
        return sort if sort in sorts else next(iter(sorts))

    # -- pages -------------------------------------------------------------------------------------------

    def overview(self, request: Request) -> Response:
        snapshot = self._snapshot(request)
        return self._page(
            "overview.html",
            request,
            **page.summary(snapshot),
            **page.distribution(snapshot),
            **page.owners_table(snapshot, count=10),
            valuable=page.most_valued(self.published, snapshot),
        )

    def owners(self, request: Request) -> Response:
        snapshot = self._snapshot(request)
        sort, matching = self._sort(request, report_queries.OWNER_SORTS), request.query_params.get("q", "")
        count = report_queries.MOST_LISTED
        number, pages = self._number(request, snapshot.count_owners(matching), count)
        found = page.owners_table(
            snapshot, sort=sort, matching=matching, offset=(number - 1) * count, count=count
        )
        return self._page("owners.html", request, sort=sort, number=number, pages=pages, q=matching, **found)

    def claims(self, request: Request) -> Response:
        return self._page("claims.html", request, **page.claims_table(self.root, self.published))

    def training(self, request: Request) -> Response:
        owner, named = request.query_params.get("owner"), request.query_params.get("q", "")
        wanted = named or owner is not None
        keys = report_queries.training_keys(self.published, owner=owner, named=named) if wanted else None
        return self._gallery(request, "training", report_queries.TRAINING_SORTS, keys, owner=owner)

    def generated(self, request: Request) -> Response:
        named = request.query_params.get("q", "")
        keys = report_queries.generated_keys(self.published, named) if named else None
        return self._gallery(request, "generated", report_queries.GENERATED_SORTS, keys)

    def _gallery(
        self, request: Request, kind: str, sorts: Mapping[str, str], keys: pa.Table | None, **more: Any
    ) -> Response:
        """A page of the images of a kind; only those of ``keys`` where given."""
        snapshot, sort = self._snapshot(request), self._sort(request, sorts)
        table = {"training": "training_values", "generated": "images"}[kind]
        number, pages = self._number(request, snapshot.count(table, keys))
        rows = getattr(snapshot, kind)(sort, (number - 1) * IMAGES, IMAGES, keys)
        names = LOOK_UP[kind](self.published, [row[f"{kind}_key"] for row in rows])
        return self._page(
            f"{kind}.html",
            request,
            rows=_named(rows, f"{kind}_key", names),
            total=snapshot.totals["training_images"] if kind == "training" else snapshot.sums["valued"],
            sort=sort,
            number=number,
            pages=pages,
            q=request.query_params.get("q", ""),
            **more,
        )

    def generated_image(self, request: Request) -> Response:
        key = request.path_params["key"]
        function = self._function(self._choices(request))
        rows = page.with_contributors(
            self.published, [{"generated_key": key}] if key < 1 << 31 else [], function, MATCHES
        )
        if not rows:
            raise HTTPException(404, "There is no such generated image.")
        return self._page(
            "generated_image.html", request, image=rows[0]["image"], contributors=rows[0]["contributors"]
        )

    def training_image(self, request: Request) -> Response:
        key = request.path_params["key"]
        image = report_queries.training_names(self.published, [key] if key < 1 << 31 else []).get(key)
        if image is None:
            raise HTTPException(404, "There is no such training image.")
        function = self._function(self._choices(request))
        rows = report_queries.beneficiaries(self.published, key, function, MATCHES)
        names = report_queries.generated_names(self.published, [row["generated_key"] for row in rows])
        value = self._snapshot(request).ask("FROM training_values WHERE training_key = $1", [key])
        return self._page(
            "training_image.html",
            request,
            image=image,
            value=value[0] if value else None,
            beneficiaries=[{**row, "image": names[row["generated_key"]]} for row in rows],
        )

    def picture(self, request: Request) -> Response:
        kind, key, size = (request.path_params[name] for name in ("kind", "key", "size"))
        image = None
        if size in (SMALL, LARGE, FULL) and key < 1 << 31:
            look_up = LOOK_UP.get(kind)
            image = look_up and look_up(self.published, [key]).get(key)
        if image is None:
            raise HTTPException(404, "There is no such picture.")
        found = self.thumbnails.get(image, size)
        if found.jpeg is None:
            return Response(formatting.placeholder(found.reason), media_type="image/svg+xml")
        return Response(found.jpeg, media_type="image/jpeg", headers={"Cache-Control": "private, no-cache"})

    async def contributors(self, request: Request) -> Response:
        if not self._looking.acquire(blocking=False):
            raise HTTPException(503, f"{UPLOADS} images are being looked up already: try again in a moment.")
        try:
            data, name = await self._uploaded(request)
            return await run_in_threadpool(self._contributors, request, data, name)
        finally:
            self._looking.release()

    async def _uploaded(self, request: Request) -> tuple[bytes, str]:
        async with request.form(max_files=1, max_fields=10) as form:
            upload = form.get("image")
            if not isinstance(upload, UploadFile) or not upload.size:
                raise SettingsError("no image was sent: drop one on the box, or choose a file")
            return await upload.read(), upload.filename or "image"

    def _contributors(self, request: Request, data: bytes, name: str) -> Response:
        function = self._function(self._choices(request))
        found = self.uploads.find(data, name, function, MATCHES)
        names = report_queries.training_names(
            self.published, [row["training_key"] for row in found.contributors]
        )
        rows = [
            page.shown_match(row, names[row["training_key"]])
            for row in found.contributors
            if row["training_key"] in names
        ]
        return self._page("dropped.html", request, found=found, contributors=rows)

    def style(self, request: Request) -> Response:
        sheets = [self._source(name) for name in ("style.css", "web.css")]
        return Response(
            "\n".join(sheets), media_type="text/css", headers={"Cache-Control": "private, max-age=60"}
        )

    def script(self, request: Request) -> Response:
        return Response(self._source("page.js"), media_type="text/javascript")

    def _source(self, name: str) -> str:
        assert self.env.loader is not None
        source: str = self.env.loader.get_source(self.env, name)[0]
        return source


def _named(rows: Sequence[Row], key: str, names: Mapping[int, Row]) -> list[Row]:
    """Rows with their images; one that was withdrawn meanwhile is left out."""
    return [{**row, "image": names[row[key]]} for row in rows if row[key] in names]


def application(
    root: Path,
    published: Published,
    settings: Settings,
    host: str = "127.0.0.1",
    *,
    root_path: str = "",
    allowed_hosts: Sequence[str] = (),
) -> Guard:
    """The pages as an ASGI application, guarded for a server that listens on ``host``: see `Guard`."""
    pages = Pages(root, published, settings)
    refused: Any = pages.refused
    app: ASGIApp = Starlette(
        routes=pages.routes(), exception_handlers={GmvError: refused, HTTPException: refused}
    )
    return Guard(app, host, UPLOAD_BYTES, root_path=root_path, allowed_hosts=allowed_hosts)
