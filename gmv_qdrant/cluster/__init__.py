"""``engine = ray``: the pipelines' own functions, spread over a Ray cluster. The driver alone writes the ledger."""
