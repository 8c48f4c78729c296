"""`spaces-server demo`: a server, speakers and listeners as processes, and what is left of them."""

import json
import os
import signal
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from spaces_client.synth import synthesise_voice
from spaces_client.wav import to_pcm16
from tests.integration.processes import Command, none_left_with, running_with

pytestmark = pytest.mark.skipif(not Path("/proc").exists(), reason="looks for children in /proc")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Every child has it in its command line; none is left in the end."""
    voice = tmp_path / "voices" / "one.wav"
    voice.parent.mkdir()
    with wave.open(str(voice), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(48_000)
        file.writeframes(to_pcm16(synthesise_voice(2, 3.0)).tobytes())
    yield tmp_path
    assert none_left_with(str(tmp_path))


def demo(folder: Path, *options: object) -> Command:
    return Command(
        "spaces_server", "demo", "--speakers", 2, "--listeners", 3,
        "--voices", folder / "voices", "--output", folder / "heard.wav", *options,
        env={"TMPDIR": str(folder)},
    )  # fmt: skip


def recorded(path: Path) -> tuple[float, float]:
    """-> (seconds, RMS of -1..1)."""
    with wave.open(str(path), "rb") as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32_768
    return len(samples) / 48_000, float(np.sqrt(np.mean(samples**2)))


def test_json_is_one_object_and_the_recording_covers_the_time(folder: Path) -> None:
    with demo(folder, "--seconds", 2, "--json") as command:
        assert command.end() == 0
        assert command.err == []
        assert len(command.out) == 1
    summary = json.loads(command.out[0])
    assert (summary["seconds"], summary["speakers"], summary["listeners"]) == (2, 2, 3)
    assert summary["packets_per_listener"]["min"] > 50
    assert summary["server_added_delay_ms"]["packets"] > 0
    assert summary["recording"] == str(folder / "heard.wav")
    seconds, rms = recorded(folder / "heard.wav")
    assert 1.9 <= seconds <= 4
    assert rms > 0.01


def test_anybody_can_join_while_it_runs_and_a_signal_ends_it_all(folder: Path) -> None:
    with demo(folder, "--seconds", 600) as command:
        link = command.line("join with:  spaces join").split("'")[1]
        guest_file = folder / "guest.wav"
        with Command(
            "spaces_client", "join", link, "--listen-only", "--output", guest_file,
            "--seconds", 1.5, "--identity", folder / "guest.key",
        ) as guest:  # fmt: skip
            guest.line("speaking: speaker")
            assert guest.end() == 0
        seconds, rms = recorded(guest_file)
        assert seconds >= 1.4
        assert rms > 0.01
        assert len(running_with(str(folder))) >= 3  # server, demo and one crowd at least
        assert command.end(signal.SIGTERM) == 1
        assert not [line for line in command.err if "Traceback" in line]
    assert none_left_with(str(folder))


def test_ctrl_c_ends_it_all_too(folder: Path) -> None:
    with demo(folder, "--seconds", 600) as command:
        command.line("join with:  spaces join")
        assert command.end(signal.SIGINT) == 1
        assert not [line for line in command.err if "Traceback" in line]


def test_a_server_that_dies_is_reported(folder: Path) -> None:
    with demo(folder, "--seconds", 600, "--json") as command:
        assert command.makes(folder / "heard.wav")  # by then the listeners are there
        (server,) = running_with(f"{folder}/tmp")
        os.kill(server, signal.SIGKILL)
        assert command.end() == 1
        assert command.out == []
        assert command.err == ["Error: the server failed: it ended without a word"]


def test_listeners_that_fail_are_reported(folder: Path) -> None:
    with demo(folder, "--seconds", 5, "--json", "--output", folder / "no" / "x.wav") as command:
        assert command.end() == 1
        assert command.out == []
        assert len(command.err) == 1
        assert command.err[0].startswith("Error: the listeners failed: cannot write")


def test_voices_that_are_not_there(folder: Path) -> None:
    (folder / "voices" / "one.wav").unlink()
    with demo(folder, "--seconds", 5) as command:
        assert command.end() == 1
        assert command.err == [
            f"Error: the speakers failed: there is no .wav file in {folder / 'voices'}"
        ]
