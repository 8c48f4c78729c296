"""The governor in the real server: it measures the machine, and is told what ticks take."""

import asyncio
import json
import time
from pathlib import Path

import numpy as np
import pytest

from protocol.frames import ErrorCode
from spaces_client.audio import BLOCK_SAMPLES
from spaces_client.live import SpacesError, connect, host
from spaces_server.gauge import gauge
from spaces_server.governor import TICK_NS, Costs, Governor, ladder
from tests.integration.processes import PATIENCE_S
from tests.integration.test_live import ADA, BOB, CYD, registered, running_server

FULL_WITH_ONE = Costs({8: 1}, decode_ns=1, datagram_ns=TICK_NS // 2)


async def test_what_was_measured_is_there_for_every_step() -> None:
    costs = await gauge(10, 32_000)
    assert tuple(costs.encode_ns) == ladder(10)
    assert min(*costs.encode_ns.values(), costs.decode_ns, costs.datagram_ns) > 0


async def test_the_load_follows_the_talk_and_a_full_server_says_so(tmp_path: Path) -> None:
    async with running_server(tmp_path) as (server, link):
        await registered(link, ada=ADA, bob=BOB, cyd=CYD)
        at_start = server.stats()
        assert at_start["capacity"] > 0
        assert (at_start["load"], at_start["complexity"]) == (0.0, 8)
        async with host(link, title="Talk", key=ADA) as ada, connect(ada.link, key=BOB):
            noise = np.random.default_rng(1).standard_normal(BLOCK_SAMPLES, np.float32)
            async with asyncio.timeout(PATIENCE_S):
                while not server.stats()["load"]:
                    ada.push(noise, time.monotonic_ns())
                    await asyncio.sleep(0.02)
            server.node.governor = Governor(FULL_WITH_ONE)
            with pytest.raises(SpacesError) as refusal:
                async with connect(ada.link, key=CYD):
                    pass
            assert refusal.value.code == ErrorCode.UNAVAILABLE
            assert str(refusal.value).startswith("the server is full for now: ")
            assert refusal.value.retry_ms > 0
            figures = json.loads(json.dumps(server.stats()))
            assert (figures["refused_joins"], figures["capacity"]) == (1, 1)
            assert figures["uplink"]["accepted"] > 0
