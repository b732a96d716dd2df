"""models: what each name needs, whether it is there, and fetching it beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gmv_qdrant.cli.options import Session, answer_options, json_option, preset_option, progress
from gmv_qdrant.cli.render import note, print_json, show

if TYPE_CHECKING:
    from gmv_qdrant.models.catalogue import ModelStatus
    from gmv_qdrant.settings import Settings


def _which(command: Any) -> Any:
    """Whose models, and where their weights are: the options of ``status`` and ``fetch``."""
    cache_dir = click.option("--cache-dir", type=click.Path(path_type=Path), help="Where weights are kept.")
    return preset_option(cache_dir(command))


@click.group()
def models() -> None:
    """What encoders, distances and quality metrics need on disk."""


@models.command("list")
@answer_options
def list_(form: str) -> None:
    """The names that settings may hold."""
    from gmv_qdrant.models.catalogue import list_models

    show(list_models(), form)


@models.command()
@click.argument("names", nargs=-1)
@_which
@answer_options
@click.pass_obj
def status(session: Session, /, names: tuple[str, ...], form: str, **which: Any) -> None:
    """Whether NAMES can be loaded without a network; without any, the models of the workspace, or of a preset."""
    from gmv_qdrant.models.catalogue import model_status, names_of
    from gmv_qdrant.models.devices import Runtime

    settings = _settings(session, names, **which)
    runtime = Runtime.of(settings)
    found = (
        [model_status(name, runtime) for name in names]
        if names
        else [model_status(name, runtime, kind) for kind, name in names_of(settings).items()]
    )
    show([row for one in found for row in _rows(one)], form, document=[one.as_dict() for one in found])


def _rows(one: ModelStatus) -> list[dict[str, Any]]:
    ready = {True: "yes", False: "no", None: "only loading it can tell"}[one.ready]
    nothing: dict[str, Any] = dict.fromkeys(("MB", "licence", "verified", "looked for in", "there"))
    rows = []
    for file in one.files:
        pin = file.pin
        rows.append(
            {
                "name": one.name,
                "ready": ready,
                "needs": file.origin,
                "MB": round(pin.size / 1e6) if pin.size else None,
                "licence": pin.licence,
                "verified": "by SHA-256" if pin.sha256 else "no: needs --trust",
                "looked for in": str(file.where),
                "there": "yes" if file.find() else "no",
            }
        )
    return rows or [{"name": one.name, "ready": ready, "needs": "nothing", **nothing}]


@models.command()
@click.argument("names", nargs=-1)
@_which
@click.option(
    "--trust", is_flag=True, default=None, help="Take files whose SHA-256 nobody publishes as they come."
)
@json_option
@click.pass_obj
def fetch(
    session: Session, /, names: tuple[str, ...], trust: bool | None, as_json: bool, **which: Any
) -> None:
    """Download what NAMES lack, verified; without any, what the models of the workspace, or of a preset, lack."""
    from gmv_qdrant.models.catalogue import fetch_models, names_of
    from gmv_qdrant.models.devices import Runtime

    settings = _settings(session, names, **which, trust=trust)
    session.writes = True
    with progress(session) as shown:
        fetched = fetch_models(
            list(names) or names_of(settings), Runtime.of(settings, progress=shown.download)
        )
    if as_json:
        print_json([one.as_dict() for one in fetched])
    else:
        note("ready: " + ", ".join(one.name for one in fetched))


def _settings(session: Session, names: tuple[str, ...], preset: str | None, **flags: Any) -> Settings:
    """Those of the workspace where there is one, and what its absence leaves: the environment and the defaults.

    A weights file of one's own is the workspace's encoder's, not that of ``names``.
    """
    from gmv_qdrant.folder import require_workspace
    from gmv_qdrant.settings import Settings, with_preset

    if session.given:
        require_workspace(session.workspace.absolute())
    settings = Settings.resolve(session.workspace, **with_preset(preset, flags))
    return settings.replaced(encoder_weights=None) if names else settings


COMMANDS = (models,)
