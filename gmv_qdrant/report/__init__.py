"""Credits to look at: tables, plots, pages."""
