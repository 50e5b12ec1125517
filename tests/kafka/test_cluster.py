"""The sink on three real brokers under load: a leader dies and comes back. More: `python -m bench.faults cluster`."""

from __future__ import annotations

import asyncio
import logging

import pytest

from kcs.clock import SystemClock
from kcs.kafka.settings import KafkaSettings
from kcs.kafka.sink import KafkaSink
from tests.kafka.load import CHANNELS, Load, compare
from tests.kafka.wire import fresh_template
from tests.realcluster import RealCluster

pytestmark = [pytest.mark.kafka, pytest.mark.filterwarnings("default::ResourceWarning")]


def test_a_leader_killed_under_load_loses_and_doubles_nothing(
    real_cluster: RealCluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "aiokafka")

    async def killed_and_back(topic: str) -> None:
        await asyncio.sleep(1)  # a load has to be under way
        leader = await asyncio.to_thread(real_cluster.leader, topic)
        await asyncio.to_thread(real_cluster.kill, leader)
        await asyncio.sleep(3)
        await asyncio.to_thread(real_cluster.restart, leader)
        await asyncio.to_thread(real_cluster.wait_in_sync)

    async def run() -> None:
        template = fresh_template()
        sink = KafkaSink(KafkaSettings(real_cluster.bootstrap, template=template, partitions=2), SystemClock())
        await sink.open(["upbit"], CHANNELS)
        load = Load(sink, rate=2_000)
        await load.run_while(killed_and_back(template.format(channel="trade", exchange="upbit")))
        await asyncio.wait_for(sink.drain(), 60)
        assert (sink.produced, sink.acked, sink.failed, sink.in_flight) == (load.number, load.number, 0, 0)
        comparison = await asyncio.to_thread(compare, load, real_cluster.bootstrap)
        assert comparison.clean, comparison
        assert comparison.records == load.number > 8_000
        await sink.close()

    asyncio.run(run())
