"""Tests of rerank_adapters.checkpoints; tests/checkpoints.py makes tiny checkpoints for all."""
