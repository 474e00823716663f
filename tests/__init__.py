"""Tests mirror the package; laws before examples."""
