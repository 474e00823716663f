"""Rewrites of a traced graph, one file each."""
