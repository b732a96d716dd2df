"""What moves images to evidence: ingest, matching, valuation, maintenance."""
