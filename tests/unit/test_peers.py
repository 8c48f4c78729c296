"""The search for what a server carries, and the many addresses that its clients have."""

import json
import socket
import time
from collections import Counter
from contextlib import ExitStack

import pytest
from click.testing import CliRunner

from bench.audience import AudienceError
from bench.peers.addresses import Addresses, rows
from bench.peers.run import (
    KEYS,
    LAST_TRIES,
    OURS,
    Candidate,
    Figures,
    Speech,
    candidates,
    command,
    measure,
)
from bench.search import ATTEMPTS, CLOSE_ENOUGH, TRIES, TRY_S, UnmeasurableError, find, search


class Pretended:
    """A server that carries so many, and fewer when it takes longer.  stalls: whether something
    is lost when a number of listeners is tried for the first time."""

    def __init__(self, name: str, short: int, long: int, *, stalls: bool = False) -> None:
        self.name = name
        self.long_tries: list[int] = []
        self._short, self._long, self._stalls = short, long, stalls
        self._tried: set[tuple[int, float]] = set()

    def missing(self) -> None:
        return None

    def measure(self, listeners: int, talkers: int, seconds: float, speech: Speech) -> Figures:
        most = self._short
        if seconds > TRY_S:
            most = self._long
            self.long_tries.append(listeners)
        stalled = self._stalls and (listeners, seconds) not in self._tried
        self._tried.add((listeners, seconds))
        loss = 0.02 if listeners > most or stalled else 0.0
        who = {"peer": self.name, "talkers": talkers, "listeners": listeners}
        return {**who, "loss": loss, "valid": True, "reason": ""}


def measured(monkeypatch: pytest.MonkeyPatch, *peers: Pretended) -> list[Figures]:
    several = [Candidate(peer, 100, 100) for peer in peers]
    monkeypatch.setattr("bench.peers.run.candidates", lambda folder: several)
    rows: list[Figures] = measure((1,))["rows"]
    return rows


@pytest.mark.parametrize("limit", [1, 2, 7, 66, 400, 999, 1_000, 1_001, 1_400, 5_000])
def test_the_search_finds_the_largest_audience_that_is_carried(limit: int) -> None:
    tried: list[int] = []

    def trouble_with(listeners: int) -> str:
        tried.append(listeners)
        return "" if listeners <= limit else f"{listeners} are too many"

    found, why = search(trouble_with, 1_000, 50_000) if limit > 40 else search(trouble_with, 9, 50)
    assert limit / (1 + CLOSE_ENOUGH) - 1 <= found <= limit
    assert why == f"{min(one for one in tried if one > limit)} are too many"
    assert len(tried) == len(set(tried)) <= TRIES


def test_a_number_that_fails_once_is_tried_again() -> None:
    tried: Counter[int] = Counter()

    def measure(count: int) -> Figures:
        tried[count] += 1
        if tried[count] == 1 and count % 3 == 0:
            raise AudienceError("the server does not answer")
        stalls = tried[count] == 1 and count % 3 == 1
        return {"count": count, "loss": 0.02 * (stalls or count > 500), "valid": True, "reason": ""}

    figures = find(measure, 100, 1_000, "listeners")
    assert 500 / (1 + CLOSE_ENOUGH) <= figures["count"] <= 500
    assert figures["loss"] == 0
    assert figures["limit"].endswith("listeners: 2.00% lost")
    assert set(tried.values()) == {1, ATTEMPTS}
    assert figures["tries"] == tried.total()


def test_the_search_stops_at_the_room_there_is_and_says_so() -> None:
    assert search(lambda listeners: "", 100, 149) == (
        149,
        "there is room for no more than 149",
    )


def test_a_server_that_carries_nobody_is_not_measured() -> None:
    with pytest.raises(UnmeasurableError, match="does not start"):
        search(lambda listeners: "it does not start", 1_000, 50_000)


def test_a_row_has_what_was_carried_for_all_of_its_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, other = Pretended(OURS, 1_000, 1_000), Pretended("other", 100, 90)
    ours_row, row = measured(monkeypatch, ours, other)
    assert row["valid"]
    assert row["loss"] == 0
    assert 86 <= row["listeners"] <= 90
    assert row["stopped_by"] == f"{other.long_tries[-2]} listeners: 2.00% lost"
    assert row["times_fewer"] == ours_row["listeners"] / row["listeners"]


def test_a_stall_makes_no_server_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    (calm,) = measured(monkeypatch, Pretended("peer", 100, 100))
    (stalled,) = measured(monkeypatch, Pretended("peer", 100, 100, stalls=True))
    assert stalled == calm


def test_a_server_that_carries_nobody_for_long_has_an_invalid_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, other = Pretended(OURS, 1_000, 1_000), Pretended("other", 100, 0)
    _, row = measured(monkeypatch, ours, other)
    assert row["valid"] is False
    assert row["reason"].startswith("carried for 3 s, but not for 10 s: ")
    assert row["reason"].endswith(f"{row['listeners']} listeners: 2.00% lost")
    assert row["times_fewer"] is None
    assert len(set(other.long_tries)) == LAST_TRIES
    assert min(other.long_tries) == row["listeners"]


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
