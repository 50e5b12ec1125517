"""Faults on purpose, with a verdict: README.md."""
