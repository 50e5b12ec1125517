"""The command line: one module a verb; each parses arguments, calls one function, prints. Nothing imports this package.

Data goes to stdout, talk to stderr. Exit codes: 0 complete, 1 failed, 2 usage, 3 finished with loss, 130 interrupted
cleanly. Imports inside the verbs are lazy, so that `kcs --help` stays quick.
"""

from kcs.cli.app import main

__all__ = ["main"]
