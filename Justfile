# just install | check | test | bench

install:
    pip install -e '.[dev]'

check:
    ruff check .
    ruff format --check .
    mypy

test *ARGS:
    pytest {{ARGS}}

bench:
    python scripts/bench/credits.py
    python scripts/bench/recall.py
    python scripts/bench/rerank.py
