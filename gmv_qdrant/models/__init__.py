"""Encoders, distances and quality metrics: their names, their weights, and how they are had (`verified`)."""
