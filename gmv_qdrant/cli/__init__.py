"""The command line: one command for each verb of `gmv_qdrant.Workspace`, with the same name and words."""

from gmv_qdrant.cli.main import main

__all__ = ["main"]
