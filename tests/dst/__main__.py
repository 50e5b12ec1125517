"""The command line: `python -m tests.dst --seed N`, `--seeds N`."""

import sys

from tests.dst.many import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
