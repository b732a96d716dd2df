"""Commands for people who look: report, serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gmv_qdrant.cli.options import function_of, function_options, warn_if_stale, with_workspace
from gmv_qdrant.cli.render import note


@click.command()
@click.argument("target", metavar="OUT.html", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--title", help="Heading of the report.  [default: the workspace's name]")
@function_options
@with_workspace
def report(workspace: Any, target: Path, title: str | None, **options: Any) -> None:
    """One self-contained HTML file: credits, intervals, plots, pictures, provenance.

    It opens without a network, prints well, and keeps to a bounded size however many images there are.
    """
    warn_if_stale(workspace)
    written = workspace.report(target, title=title, **function_of(options))
    note(f"wrote {written} ({written.stat().st_size / 1024:,.0f} KB)")


@click.command()
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; any but loopback asks for a token.",
)
@click.option(
    "--port", default=8377, show_default=True, type=click.IntRange(0, 65535), help="0 picks a free one."
)
@click.option(
    "--root-path", default="", help="What stands before every path, where a proxy hands the pages on."
)
@click.option("--allowed-host", "allowed_hosts", multiple=True, help="A name that the proxy goes by.")
@with_workspace
def serve(workspace: Any, host: str, port: int, root_path: str, allowed_hosts: tuple[str, ...]) -> None:
    """The same as local pages: browse, sort, filter, drop an image and see its contributors."""
    workspace.serve(
        host,
        port,
        root_path=root_path,
        allowed_hosts=allowed_hosts,
        tell=lambda address: note(f"open {address} (Ctrl+C stops it)"),
    )


COMMANDS = (report, serve)
