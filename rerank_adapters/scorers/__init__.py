"""Scorers: (query, text) pairs in, scores out."""
