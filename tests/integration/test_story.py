"""`spaces-server demo --story`: one evening of the product, against a server of its own."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.processes import Command, none_left_with, running_with

pytestmark = pytest.mark.skipif(not Path("/proc").exists(), reason="looks for children in /proc")

STEPS = [
    "server", "register", "owner", "access", "access", "follow", "schedule", "post", "start",
    "join", "invite", "token", "hand", "speak", "reaction", "block", "block", "chat", "mute",
    "mute", "report", "crash", "remove", "ban", "outcome", "close", "ask", "nothing",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The server has it in its command line; it does not outlive the story."""
    yield tmp_path
    assert none_left_with(str(tmp_path))


def story(folder: Path, *options: str, **env: str) -> Command:
    return Command("spaces_server", "demo", "--story", *options, env={"TMPDIR": str(folder), **env})


def test_every_step_is_told_in_its_order_as_json(folder: Path) -> None:
    with story(folder, "--json") as command:
        for step in dict.fromkeys(STEPS):  # patience with each: together they take half a minute
            command.line(f'"{step}"', printed=True)
        assert command.end() == 0
        assert command.err == []
    steps = [json.loads(line) for line in command.out]
    assert [step["step"] for step in steps] == STEPS
    assert all(step["text"] for step in steps)
    times = [step["seconds"] for step in steps]
    assert times == sorted(times)
    blocked, blocking = (step["levels"] for step in steps if step["step"] == "block")
    assert blocked["dora"] < 0.1 < blocked["ben"]
    assert blocking["ben"] < 0.1 < blocking["dora"]
    assert list(folder.iterdir()) == []  # nothing is left of it


def test_a_person_reads_it_as_it_happens(folder: Path) -> None:
    with story(folder) as command:
        command.line("Ben follows Ada")
        assert command.process.poll() is None, "it is not over yet"
        assert len(running_with(str(folder))) >= 1  # the server
        assert command.end(signal.SIGINT) == 1
        assert not [line for line in command.err if "Traceback" in line]
    assert list(folder.iterdir()) == []


def test_a_server_that_cannot_start_is_said_in_one_line(folder: Path) -> None:
    with story(folder, "--json", SPACES_PORT="1", SPACES_HOST="192.0.2.1") as command:
        assert command.end() == 1
        assert command.out == []
        assert len(command.err) == 1
        assert command.err[0].startswith("Error: the server did not start: '192.0.2.1' is not")


def test_a_server_that_dies_is_said_in_one_line(folder: Path) -> None:
    with story(folder, "--json") as command:
        command.line('"register"')
        (server,) = running_with(f"{folder}/tmp")
        os.kill(server, signal.SIGKILL)
        assert command.end() == 1
        assert len(command.err) == 1
        assert command.err[0].startswith("Error: ")
