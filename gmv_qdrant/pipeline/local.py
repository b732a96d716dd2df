"""``engine = local``: both runs in this process."""

from gmv_qdrant.pipeline.ingest import ingest
from gmv_qdrant.pipeline.valuation import value

__all__ = ["ingest", "value"]
