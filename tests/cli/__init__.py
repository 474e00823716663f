"""Tests of rerank_adapters.cli."""
