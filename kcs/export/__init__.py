"""Research formats: an export is a replay into another consumer. pyarrow is imported here only, and only when used."""
