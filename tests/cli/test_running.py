"""What a process that runs for weeks asks of its system."""

from __future__ import annotations

import subprocess
import sys

_SHOW = """
import resource
from kcs.cli.running import allow_many_files
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
allow_many_files()
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
print(soft == hard, hard > 64)
"""


def test_as_many_files_may_be_open_as_the_system_allows() -> None:
    """A run whose broker is away holds one more open with each rotation."""
    shown = subprocess.run([sys.executable, "-c", _SHOW], capture_output=True, text=True, timeout=60, check=True)
    assert shown.stdout.split() == ["True", "True"], shown
