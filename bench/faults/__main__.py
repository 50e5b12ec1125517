"""`python -m bench.faults NAME ARGS`: runs `bench.faults.NAME.main(ARGS)`, whose result is the exit code."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

NAMES = sorted(
    path.stem
    for path in Path(__file__).parent.glob("*.py")
    if not path.stem.startswith("_") and "\ndef main(argv" in path.read_text()
)


def main() -> int:
    """Find the bench and run it; without one, list them."""
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        print(f"usage: python -m bench.faults {{{','.join(NAMES)}}} [OPTIONS]", file=sys.stderr)
        return 2
    code: int = importlib.import_module(f"bench.faults.{sys.argv[1]}").main(sys.argv[2:])
    return code


if __name__ == "__main__":
    sys.exit(main())
