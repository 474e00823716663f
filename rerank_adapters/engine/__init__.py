"""Threads, queue and batches: token batches in, rows of numbers out, for any number of callers."""
