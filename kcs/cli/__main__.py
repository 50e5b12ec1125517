"""`python -m kcs.cli`: the same as `kcs`."""

from kcs.cli.app import main

main()
