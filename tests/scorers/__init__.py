"""Tests of scoring: laws, queue, faults."""
