"""Who earned the credit for a generated image? GMValuator (ICLR 2025) on Qdrant and DuckDB."""
