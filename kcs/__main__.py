"""`python -m kcs`: the same as `kcs`."""

from kcs.cli.app import main

main()
