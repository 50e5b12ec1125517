"""The deterministic simulation test: a whole `kcs live` in one process, in virtual time, failing by a seed.

See README.md here. `python -m tests.dst --seed N` replays one run, `--seeds N` makes many.
"""
