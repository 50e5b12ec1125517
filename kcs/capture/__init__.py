"""Capture files: `writer` makes them, `reader` reads, `recover` saves, `ndjson` exchanges; see FORMAT.md.

Knows no exchange and no Kafka. Import the modules; nothing is loaded by importing the package.
"""
