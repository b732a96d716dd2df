"""``python -m gmv_qdrant`` is the command line."""

from gmv_qdrant.cli import main

main()
