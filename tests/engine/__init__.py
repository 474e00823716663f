"""Tests of the engine: queue, batches, threads, over stub forwards."""
