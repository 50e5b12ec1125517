"""A deterministic exchange for demos, tests, fixtures and benchmarks: same seed, same bytes.

`settings.SimSettings` says what to simulate, `market` makes it happen, `upbit` speaks the venue's dialect without I/O,
`server` puts it on a socket and `tape` writes it into a capture. Knows neither live nor
replay. Imports nothing by itself.
"""
