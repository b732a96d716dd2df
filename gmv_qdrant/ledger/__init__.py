"""The DuckDB file that keeps the evidence, and the SQL that turns it into values and credits."""
