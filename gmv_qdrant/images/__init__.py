"""From paths, tables and archives to records, and from bytes to RGB."""
