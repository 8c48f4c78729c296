"""Many come at once: the server's loop makes their handshakes one by one, and the benchmark of it
counts them."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from protocol.link import Link
from protocol.opening import Opening
from protocol.packets import Kind, Welcome
from spaces_server import server as module
from tests.integration.processes import PATIENCE_S
from tests.integration.test_live import running_server

NEWCOMERS = 60  # more than the transport reads at once; fewer than need cookies


def hello_of(number: int, link: Link) -> bytes:
    opening = Opening(number, link.key, os.urandom(32), agent="test", entropy=os.urandom)
    return opening.hello.pack()


async def test_a_burst_of_newcomers_is_welcomed_one_by_one(tmp_path: Path) -> None:
    async with running_server(tmp_path) as (server, link):
        hellos = [hello_of(number, link) for number in range(NEWCOMERS)]
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
            sock.connect((link.host, link.port))
            sock.setblocking(False)
            for hello in hellos:  # nothing is read meanwhile: the loop is ours
                sock.send(hello)
            loop = asyncio.get_running_loop()
            welcomed: set[int] = set()
            waiting: list[int] = []
            async with asyncio.timeout(PATIENCE_S):
                while len(welcomed) < NEWCOMERS:
                    data = await loop.sock_recv(sock, 2_048)
                    assert data[0] == Kind.WELCOME
                    welcomed.add(Welcome.unpack(data).client_index)
                    waiting.append(server.node.waiting)
        assert welcomed == set(range(NEWCOMERS))
        assert max(waiting) > NEWCOMERS // 2, "answers went out while others waited"
        assert waiting[-1] == 0


@dataclass
class Behind:
    """A ticker whose next tick was due long ago."""

    number: int
    deadline_ns: int = 0

    def wake(self) -> None:
        pass


async def test_a_server_that_is_behind_works_once_a_tick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_server(tmp_path) as (server, link):
        with monkeypatch.context() as patch:
            ticker = Behind(number=1_000)
            patch.setattr(server, "_ticker", ticker)
            patch.setattr(module, "WORK_NS", 1)  # so that one handshake is all that is made
            for number in range(3):
                server.node.receive_datagram(hello_of(number, link), b"".ljust(28), 0)
            for left in (2, 1, 0):
                ticker.number += 1
                for _ in range(3):
                    server._work()
                    assert server.node.waiting == left


KEYS = {
    "listeners", "rate", "seconds", "joins", "joins_per_second", "unanswered", "refused", "cookies",
    "hellos_repeated", "latency_ms", "cpu_us_per_join", "server_cpu", "server_cpu_before", "loss",
    "loss_before", "extra_loss", "tick_lateness_ms", "tick_lateness_before_ms", "generator_cpu",
    "generator_lateness_ms", "valid", "reason",
}  # fmt: skip


def test_a_small_storm_is_measured() -> None:
    # A process of its own: it takes a core for itself, and comes before others.
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bench.cli", "joins", "--json"),
            *("--listeners", "20", "--rate", "50", "--seconds", "1"),
        ],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures.keys() == KEYS
    assert figures["joins"] > 0
    assert figures["unanswered"] == 0
    assert figures["refused"] == {}
    assert 0 < figures["latency_ms"]["p50"] <= figures["latency_ms"]["p99"]
    assert figures["loss"] < 1
    assert figures["valid"] == (figures["reason"] == "")
