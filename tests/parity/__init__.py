"""Tests of how ways to run a network are compared."""
