"""kcs: the record/replay toolkit for exchange market data.

The capture is the log, Kafka is a follower of it. For notebooks and tests::

    import kcs
    for event in kcs.read("fixtures/upbit.zst"):
        print(event)

Heavy imports stay inside the functions that need them, so that importing the package (and `kcs --help`) is quick.
"""

from __future__ import annotations

__version__ = "0.1.0"
