# just install | check | test | bench

install:
    pip install -e '.[dev]'

check:
    ruff check .
    ruff format --check .
    mypy

test *ARGS:
    pytest {{ARGS}}

bench DATA WORK *ARGS:
    python scripts/bench/all.py --data {{DATA}} --work {{WORK}} {{ARGS}}
