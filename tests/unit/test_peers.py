"""The search for what a server carries, and the many addresses that its clients have."""

import json
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from click.testing import CliRunner

from bench.audience import AudienceError
from bench.peers.addresses import Addresses, rows
from bench.peers.run import (
    KEYS,
    OURS,
    Candidate,
    Figures,
    Speech,
    candidates,
    command,
    measure,
)
from bench.search import (
    ATTEMPTS,
    CLOSE_ENOUGH,
    MAX_TICK_LATENESS_MS,
    TRIES,
    Attempt,
    find,
    search,
    trouble_in,
)


class Pretended:
    """A server that carries so many, with all of its core.  stalls: whether something is lost when
    a number of listeners is tried for the first time."""

    def __init__(self, name: str, most: int, *, stalls: bool = False) -> None:
        self.name = name
        self.tried: Counter[int] = Counter()
        self._most, self._stalls = most, stalls

    def missing(self) -> None:
        return None

    def measure(self, listeners: int, talkers: int, seconds: float, speech: Speech) -> Figures:
        self.tried[listeners] += 1
        stalled = self._stalls and self.tried[listeners] == 1
        who = {"peer": self.name, "talkers": talkers, "listeners": listeners, "seconds": seconds}
        return {**who, **figures(listeners, self._most, stalled=stalled)}


def figures(count: int, most: int, *, stalled: bool = False) -> Figures:
    """Of a server that carries so many at most."""
    loss = 0.02 if count > most or stalled else 0.0
    return {"loss": loss, "valid": True, "reason": "", "server_cpu": min(1.0, count / (most or 1))}


def measured(monkeypatch: pytest.MonkeyPatch, *peers: Pretended) -> list[Figures]:
    several = [Candidate(peer, 100, 100) for peer in peers]
    monkeypatch.setattr("bench.peers.run.candidates", lambda folder: several)
    rows: list[Figures] = measure((1,))["rows"]
    return rows


def searched(
    most: int, start: int, room: int, cpu: Callable[[int], float]
) -> tuple[Figures, str, list[int]]:
    """-> (the figures of what was found, what was wrong with more, what was tried), with a server
    that carries so many and takes so much of its core for a number."""
    tried: list[int] = []

    def attempt(count: int) -> Attempt:
        tried.append(count)
        trouble = "" if count <= most else "too many"
        return {"count": count, "server_cpu": cpu(count)}, trouble

    return *search(attempt, start, room), tried


@pytest.mark.parametrize("limit", [1, 2, 7, 66, 400, 999, 1_000, 1_001, 1_400, 5_000])
@pytest.mark.parametrize("share", [0.2, 0.8, 1.0, 1.3])
def test_the_search_finds_the_largest_audience_that_is_carried(limit: int, share: float) -> None:
    """Whether CPU is what limits the server or not."""
    start, room = (1_000, 50_000) if limit > 40 else (9, 50)
    found, why, tried = searched(limit, start, room, lambda count: share * count / limit)
    assert limit / (1 + CLOSE_ENOUGH) - 1 <= found["count"] <= limit
    assert why == f"{min(one for one in tried if one > limit)}: too many"
    assert len(tried) == len(set(tried)) <= TRIES


def test_where_cpu_is_the_limit_few_numbers_are_tried() -> None:
    for most in (1_100, 2_000, 3_400, 3_900):
        _, _, tried = searched(most, 1_000, 50_000, lambda count, most=most: 0.97 * count / most)
        assert len(tried) <= 4


def test_a_server_of_two_cores_is_full_when_both_are() -> None:
    tried: list[int] = []

    def attempt(count: int) -> Attempt:
        tried.append(count)
        cpu = {"server_cpu": 2 * count / 3_000, "server_cores": 2}
        return cpu, "" if count <= 3_000 else "too many"

    search(attempt, 1_500, 50_000)
    assert tried[:2] == [1_500, 3_000]


def test_a_server_that_is_late_all_the_time_has_too_much_to_do() -> None:
    """Even if nothing is lost; one that was late for a moment has not."""

    def trouble(late_ms: float) -> str:
        lateness = {"p50": late_ms, "p99": 180.0, "max": 190.0}
        return trouble_in({**figures(9, 10), "tick_lateness_ms": lateness})

    assert trouble(0.4) == trouble(MAX_TICK_LATENESS_MS) == ""
    assert trouble(94.5) == "half of the ticks were late by 94 ms or more"


def test_a_number_that_fails_once_is_tried_again() -> None:
    tried: Counter[int] = Counter()
    said: list[str] = []

    def measure(count: int) -> Figures:
        tried[count] += 1
        if tried[count] == 1 and count % 2 == 0:
            raise AudienceError("the server does not answer")
        return {"count": count, **figures(count, 500, stalled=tried[count] == 1)}

    found = find(measure, 100, 1_000, say=lambda count, line: said.append(f"{count} {line}"))
    assert 500 / (1 + CLOSE_ENOUGH) <= found["count"] <= 500
    assert found["loss"] == 0
    assert found["limit"].endswith(": 2.00% lost")
    assert set(tried.values()) == {ATTEMPTS}
    assert found["tries"] == tried.total() == len(said)
    assert said[:2] == ["100 the server does not answer", "100 carried"]


def test_the_search_stops_at_the_room_there_is_and_says_so() -> None:
    found, why, _ = searched(1_000, 100, 149, lambda count: count / 1_000)
    assert (found["count"], why) == (149, "there is room for no more than 149")


def test_a_server_that_carries_nobody_is_not_measured() -> None:
    with pytest.raises(AudienceError, match="1: it does not start"):
        search(lambda listeners: (None, "it does not start"), 50, 50_000)


def test_a_row_has_what_was_carried_for_all_of_its_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = Pretended("other", 90)
    ours_row, row = measured(monkeypatch, Pretended(OURS, 1_000), other)
    assert row["valid"]
    assert row["loss"] == 0
    assert row["seconds"] == 10.0
    assert 86 <= row["listeners"] <= 90
    assert row["stopped_by"] == f"{min(n for n in other.tried if n > 90)}: 2.00% lost"
    assert row["times_fewer"] == ours_row["listeners"] / row["listeners"]


def test_a_stall_makes_no_server_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    (calm,) = measured(monkeypatch, Pretended("peer", 100))
    (stalled,) = measured(monkeypatch, Pretended("peer", 100, stalls=True))
    assert stalled == calm


def test_a_server_that_carries_nobody_has_an_invalid_row(monkeypatch: pytest.MonkeyPatch) -> None:
    _, row = measured(monkeypatch, Pretended(OURS, 1_000), Pretended("other", 0))
    assert row["valid"] is False
    assert row["reason"] == "1: 2.00% lost"
    assert row["times_fewer"] is None


def test_a_server_that_is_not_installed_gets_a_row_that_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bench.peers.mumble._find_program", lambda: None)
    said: list[str] = []
    figures = measure((1, 4), names=["mumble"], say=said.append)
    assert [row["talkers"] for row in figures["rows"]] == [1, 4]
    for row in figures["rows"]:
        assert set(row) == set(KEYS)
        assert row["valid"] is False
        assert "apt install mumble-server" in row["reason"]
        assert row["listeners"] is None
    assert "apt install mumble-server" in said[0]
    assert figures["machine"]["cores"] >= 1


def test_the_command_prints_rows_beside_each_other_or_one_object(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bench.peers.mumble._find_program", lambda: None)
    runner, options = CliRunner(), ["--peer", "mumble", "--talkers", "3"]
    table = runner.invoke(command, options)
    assert table.exit_code == 0
    assert "mumble, 3 talking: mumble-server is not installed" in table.stdout
    printed = runner.invoke(command, [*options, "--json"])
    assert [row["peer"] for row in json.loads(printed.stdout)["rows"]] == ["mumble"]


def test_every_server_has_a_name_of_its_own() -> None:
    names = [one.peer.name for one in candidates()]
    assert len(names) == len(set(names)) == 7


def test_clients_are_told_apart_by_their_addresses_both_ways() -> None:
    with ExitStack() as stack, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(5)
        clients = Addresses(stack, 1_000)
        for number in (0, 255, 256, 999):
            clients.send(number, b"from %d" % number, server.getsockname())
            data, source = server.recvfrom(100)
            assert data == b"from %d" % number
            assert source[0] == clients.address(number)
            server.sendto(b"to %d" % number, source)
        came: list[tuple[int, bytes]] = []
        give_up = time.monotonic() + 5
        while len(came) < 4 and time.monotonic() < give_up:
            came += rows(clients.receive())
        assert sorted(came) == [(n, b"to %d" % n) for n in (0, 255, 256, 999)]
        assert clients.dropped() == 0


@pytest.mark.parametrize("count", [0, (1 << 16) + 1])
def test_there_are_so_many_addresses_and_no_more(count: int) -> None:
    with ExitStack() as stack, pytest.raises(ValueError, match="1 to 65536"):
        Addresses(stack, count)
