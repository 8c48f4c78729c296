"""The search for what a server carries, and the many addresses that its clients have."""

import json
import socket
import time
from contextlib import ExitStack

import pytest
from click.testing import CliRunner

from bench.peers.addresses import Addresses, rows
from bench.peers.run import KEYS, candidates, command, measure
from bench.search import CLOSE_ENOUGH, TRIES, UnmeasurableError, search


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


def test_the_search_stops_at_the_room_there_is_and_says_so() -> None:
    assert search(lambda listeners: "", 100, 149) == (
        149,
        "there is room for no more than 149",
    )


def test_a_server_that_carries_nobody_is_not_measured() -> None:
    with pytest.raises(UnmeasurableError, match="does not start"):
        search(lambda listeners: "it does not start", 1_000, 50_000)


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
