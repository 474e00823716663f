"""Tests of documents' stored tokens."""
