"""The command line: one command for each verb of `gmv_qdrant.Workspace`, with the same name and words."""

import os
import sys
import time

STARTED = time.monotonic()
"""When the program was started."""


def main() -> None:
    """Entry point of ``gmv-qdrant``."""
    for handle in (0, 1, 2):  # a file that is opened later must not become a closed standard stream
        try:
            os.fstat(handle)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    try:
        from gmv_qdrant.cli.main import cli

        cli()
    except KeyboardInterrupt:  # before there was anything to stop
        sys.exit(130)
