"""What a simulation is made from: one frozen value. Imports `errors`, `model` and the catalogue.

Two simulations with equal settings and a fixed epoch produce equal bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from kcs.errors import ConfigError, UnknownNameError
from kcs.model import CHANNELS
from kcs.sim.catalogue import DEFAULT_MARKETS, spec_of
from kcs.sim.faults import Faults

DEFAULT_EPOCH_NS: Final = 1_767_258_000_000_000_000
"""2026-01-01T09:00:00Z: the venue's time at virtual time 0 when no epoch is given."""

EXCHANGES: Final = ("upbit",)
RATE_MAX: Final = 1_000_000
BURST_FLAT: Final = 100
BURST_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class SimSettings:
    """A simulated exchange.

    rate          frames per second over all `channels` and `markets` together: what a client of all of it gets
    channels      what the venue publishes; the rate is shared among these alone
    epoch_ns      the venue's time (Unix ns) at virtual time 0; None: the caller's time when the market opens
    burst_percent the rate inside a burst in percent of the mean (100: no bursts); the mean stays `rate`
    duration_ns   the market ends after this much virtual time (None: never)
    frames_max    the market ends after this many market frames (snapshots, acks and junk not counted; None: never)
    queue_bytes_max  a client with more unsent bytes than this is cut off as a slow consumer
    wait_for_client  the server opens the market with the first subscription, so that every run is the same from its
                  first frame; False: when the server starts
    """

    exchange: str = "upbit"
    seed: int = 7
    rate: int = 100
    markets: tuple[str, ...] = DEFAULT_MARKETS
    channels: tuple[str, ...] = CHANNELS
    epoch_ns: int | None = DEFAULT_EPOCH_NS
    burst_percent: int = 200
    duration_ns: int | None = None
    frames_max: int | None = None
    queue_bytes_max: int = 8 * 1024 * 1024
    wait_for_client: bool = True
    compression: bool = False
    host: str = "127.0.0.1"
    port: int = 9801
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        if self.exchange not in EXCHANGES:
            raise UnknownNameError("exchange", self.exchange, EXCHANGES, where="simulator")
        for code in self.markets:
            spec_of(code, where=f"simulated {self.exchange}")
        for channel in self.channels:
            if channel not in CHANNELS:
                raise UnknownNameError("channel", channel, CHANNELS, where="simulator")
        for code in self.faults.markets:
            if code not in self.markets:
                raise UnknownNameError("market", code, self.markets, where="fault market_silent")
        for name, values in (("market", self.markets), ("channel", self.channels)):
            if not values or len(set(values)) != len(values):
                raise ConfigError(f"the simulator needs at least one {name}, each once, not {values}")
        self._check_range("rate", self.rate, 1, RATE_MAX)
        self._check_range("burst_percent", self.burst_percent, BURST_FLAT, BURST_MAX)
        self._check_range("port", self.port, 0, 65_535)
        self._check_range("queue_bytes_max", self.queue_bytes_max, 1, 1 << 40)
        self._check_range("seed", self.seed, 0, (1 << 64) - 1)
        for name, value in (("duration_ns", self.duration_ns), ("frames_max", self.frames_max)):
            if value is not None:
                self._check_range(name, value, 0, 1 << 62)

    def _check_range(self, name: str, value: int, low: int, high: int) -> None:
        if not low <= value <= high:
            raise ConfigError(f"{name} must be {low} to {high}, not {value}", where="simulator")
