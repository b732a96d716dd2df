"""``python -m gmv_qdrant`` is the command line."""

from .cli import main

main()
