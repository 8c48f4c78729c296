"""`spaces host`, `join`, `devices` and `crowd` as a person meets them."""

import fcntl
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from protocol.connection import MS
from protocol.link import Link
from spaces_client import client, devices
from spaces_client.audio import SAMPLE_RATE_HZ, Samples
from spaces_client.cli import main
from spaces_client.synth import synthesise_voice
from spaces_client.wav import read_blocks, to_pcm16
from tests.integration.processes import PATIENCE_S, Command, ServerCommand

KEY = "A" * 42 + "E"
VOICE_S = 2.0
PIECE_SAMPLES = SAMPLE_RATE_HZ // 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """-> the link of a server."""
    with ServerCommand(tmp_path_factory.mktemp("server")) as command:
        yield command.link
        assert command.end(signal.SIGTERM) == 0
        assert not [line for line in command.err if "Traceback" in line or "Warning" in line]


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    """A WAV file of somebody who speaks for two seconds."""
    path = tmp_path / "voice.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes(to_pcm16(synthesise_voice(1, VOICE_S)).tobytes())
    return path


def samples_of(path: Path) -> Samples:
    return np.concatenate(list(read_blocks(path)))


def likeness(recording: NDArray[np.float32], said: NDArray[np.float32]) -> float:
    """How like `said` (n,) the recording is, 0 to 1: the median over pieces of 250 ms, each where
    it fits best, because a playout that adapts moves them against each other."""
    size = len(recording) + PIECE_SAMPLES
    spectrum = np.fft.rfft(recording, size)
    found = []
    for start in range(0, len(said) - PIECE_SAMPLES + 1, PIECE_SAMPLES):
        piece = said[start : start + PIECE_SAMPLES]
        match = np.fft.irfft(spectrum * np.conj(np.fft.rfft(piece, size)), size)
        at = int(np.argmax(match[: len(recording) - PIECE_SAMPLES]))
        part = recording[at : at + PIECE_SAMPLES]
        found.append(part @ piece / np.sqrt((part @ part) * (piece @ piece) + 1e-12))
    return float(np.median(found))


def refused(*arguments: object) -> str:
    """Runs a command that must fail -> its one line."""
    with tempfile.TemporaryDirectory() as folder:
        if arguments[0] in ("host", "join") and "--identity" not in arguments:
            arguments += ("--identity", f"{folder}/key")  # not the key of who runs the tests
        result: Result = CliRunner().invoke(main, list(map(str, arguments)))
    assert isinstance(result.exception, SystemExit), result.exception  # no traceback
    assert result.exit_code != 0
    assert "spaces join" not in result.stdout  # no link to a space that is over already
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert result.stderr.splitlines()[-1] == errors[0]
    return errors[0]


def person(command: str, link: object, folder: Path, name: str, *options: object) -> Command:
    identity = folder / f"{name}.key"
    return Command("spaces_client", command, link, "--name", name, "--identity", identity, *options)


# --- speaking and listening


def test_a_listener_records_what_the_host_says(server: str, voice: Path, tmp_path: Path) -> None:
    heard = tmp_path / "heard.wav"
    with person(
        "host", server, tmp_path, "Ada", "--input", voice, "--loop", "--output", tmp_path / "h.wav"
    ) as ada:
        link = ada.line("listeners join with:").split("'")[1]
        with person(
            "join", link, tmp_path, "Bob", "--listen-only", "--output", heard, "--seconds", 3
        ) as bob:
            bob.line("speaking: Ada")
            assert bob.end() == 0
            assert not bob.err, "\n".join(bob.err)
        assert ada.end(signal.SIGINT) == 0
        assert ada.err == []
    recording, said = samples_of(heard), samples_of(voice)
    assert 2.9 <= len(recording) / SAMPLE_RATE_HZ <= 4
    middle = said[SAMPLE_RATE_HZ // 2 : SAMPLE_RATE_HZ * 3 // 2]
    assert likeness(recording, middle) > 0.6
    loudness = np.sqrt(np.mean(recording**2) / np.mean(said**2))
    assert 0.5 < loudness < 1.5


def test_who_raises_a_hand_and_is_brought_up_speaks_from_the_file(
    server: str, voice: Path, tmp_path: Path
) -> None:
    recorded = tmp_path / "host.wav"
    with person(
        "host", server, tmp_path, "Ada", "--input", voice, "--loop", "--output", recorded
    ) as ada:
        link = ada.line("listeners join with:").split("'")[1]
        with person(
            "join", link, tmp_path, "Bob", "--input", voice, "--output", tmp_path / "b.wav"
        ) as bob:
            bob.enter("/hand")
            hint = ada.line("Bob (2) raises a hand")
            assert hint.endswith("; /up 2 lets them speak")
            ada.enter("/mute")
            ada.enter("/up 2")
            bob.line("you are on stage")
            ada.line("speaking: Bob")
            assert bob.end() == 0  # at the end of the file
            assert not bob.err, "\n".join(bob.err)
        ada.line("Bob (2) is off the stage")
        ada.enter("/end")
        ada.line("the space is over")
        assert ada.end() == 0
    assert "no such space" in refused("join", link, "--listen-only")
    said = samples_of(voice)
    recording = samples_of(recorded)
    assert likeness(recording, said[SAMPLE_RATE_HZ // 2 :]) > 0.6
    assert likeness(recording, said[-SAMPLE_RATE_HZ // 4 :]) > 0.6  # the last words as well


def test_a_server_that_stops_ends_the_session_with_a_line(tmp_path: Path) -> None:
    with (
        ServerCommand(tmp_path) as server,
        person(
            "host", server.link, tmp_path, "Ada", "--listen-only", "--output", os.devnull
        ) as ada,
    ):
        ada.line("speakers join with:")
        assert server.end(signal.SIGTERM) == 0
        assert ada.end() == 1
        assert ada.err == ["Error: the session is over: the server is shutting down"]


def test_the_same_identity_twice_is_one_person(server: str, tmp_path: Path) -> None:
    options = ("--listen-only", "--output", os.devnull)
    with person("host", server, tmp_path, "Ada", *options) as first:
        link = first.line("listeners join with:").split("'")[1]
        with person("join", link, tmp_path, "Ada", *options, "--seconds", 20) as second:
            assert first.end() == 1
            assert first.err[0].endswith("use --identity")
            assert second.end(signal.SIGTERM) == 0


def test_the_face_on_a_terminal(server: str, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    shown = ""

    def read_until(wanted: str) -> None:
        nonlocal shown
        while wanted not in shown:
            shown += os.read(ours, 65_536).decode(errors="replace")
        shown = shown.partition(wanted)[2]

    command = [sys.executable, "-m", "spaces_client", "host", server, "--title", "Tea"]
    command += ["--name", "李 Ada", "--identity", str(tmp_path / "key"), "--listen-only"]
    command += ["--output", os.devnull]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, env=environment) as process:
        try:
            read_until("speakers join with:")
            read_until("Tea")
            read_until("李 Ada")
            read_until("(you)")
            os.write(ours, b"/nonsense\r")
            read_until("there is no command /nonsense")
            os.write(ours, b"\x1b[A\x1bOP/who\r")  # an arrow and a function key mean nothing
            read_until("here: 1 李 Ada")
            os.write(ours, b"/x\x15/link\r")
            read_until("link for listeners: spaces://")
            os.write(ours, b"/quit\r")
            assert process.wait(PATIENCE_S) == 0
            assert termios.tcgetattr(theirs)[3] & termios.ECHO
        finally:
            process.kill()
    os.close(theirs)
    os.close(ours)


# --- what cannot work


@pytest.mark.parametrize(
    ("link", "says"),
    [
        ("nonsense", "a link starts with spaces://"),
        ("https://example.org/", "a link starts with spaces://"),
        (f"spaces:///space?key={KEY}", "names no host"),
        ("spaces://127.0.0.1:5004/space", "the link has no key=…; copy it whole"),
        ("spaces://127.0.0.1:5004/space?key=AAAA", "3 bytes where it must have 32"),
        (f"spaces://127.0.0.1:99999/space?key={KEY}", "cannot be read"),
        (f"spaces://127.0.0.1/a/b?key={KEY}", "is not the name of a space"),
        (f"spaces://127.0.0.1:5004/?key={KEY}", "names no space"),
        (f"spaces://no.such.host.invalid/space?key={KEY}", "cannot be reached"),
    ],
)
def test_a_link_that_is_wrong(link: str, says: str) -> None:
    assert says in refused("join", link)


def test_a_space_that_is_not_there(server: str) -> None:
    link = Link.parse(server)
    nowhere = Link(link.host, link.port, link.key, "nowhere")
    assert "there is no such space; it may have ended" in refused("join", nowhere)
    assert "there is no such space; it may have ended" in refused("crowd", nowhere)


def test_a_server_with_another_key(server: str) -> None:
    link = Link.parse(server)
    says = refused("host", Link(link.host, link.port, bytes(31) + b"\x01"))
    assert "the server has another key than the link says" in says


def test_nobody_listens_there() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    says = refused("join", f"spaces://127.0.0.1:{port}/space?key={KEY}")
    assert f"nothing listens at 127.0.0.1:{port}" in says


def test_a_host_that_swallows_what_it_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CONNECT_TIMEOUT_NS", 1_000 * MS)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.settimeout(PATIENCE_S)
        port = silent.getsockname()[1]
        link = f"spaces://127.0.0.1:{port}/space?key={KEY}"
        with person("join", link, tmp_path, "Bob") as command:
            silent.recv(2_048)  # it knocks
            assert command.end(signal.SIGINT) == 1
            assert command.out == []
            assert command.err == ["Error: interrupted"]
        assert f"no answer from 127.0.0.1:{port}" in refused("join", link)


def test_files_that_are_wrong(server: str, voice: Path, tmp_path: Path) -> None:
    output = ("--output", tmp_path / "out.wav", "--identity", tmp_path / "key")
    empty, text = tmp_path / "empty.wav", tmp_path / "text.wav"
    empty.touch()
    text.write_text("no sound at all")
    for file, says in (
        (tmp_path / "none.wav", "No such file"),
        (tmp_path, "Is a directory"),
        (empty, "is empty; choose a WAV file"),
        (text, "is not a WAV file"),
    ):
        assert says in refused("host", server, "--input", file, *output)
    says = refused("host", server, *output, "--listen-only", "--output", tmp_path / "no" / "x")
    assert "cannot write" in says
    (tmp_path / "key").chmod(0o644)
    assert "chmod 600" in refused("host", server, *output)


def test_options_that_are_wrong(server: str, voice: Path, tmp_path: Path) -> None:
    assert "--loop needs" in refused("host", server, "--loop", "--identity", tmp_path / "key")
    says = refused(
        "host", server, "--listen-only", "--input", voice, "--identity", tmp_path / "key"
    )
    assert "--listen-only leaves no use" in says
    assert "1 to 40 characters" in refused("host", server, "--name", "")
    assert "1 to 40 characters" in refused("host", server, "--name", "\x1b[31mred")
    assert "1 to 100 characters" in refused("host", server, "--title", "x" * 101)


@pytest.mark.skipif(bool(devices.list_devices()), reason="needs a machine without sound devices")
def test_without_devices_nothing_pretends_to_be_one(server: str, tmp_path: Path) -> None:
    key = ("--identity", tmp_path / "key")
    output = ("--output", tmp_path / "out.wav")
    assert "no speakers found; connect some or use --output" in refused(
        "host", server, *key, "--listen-only"
    )
    assert "no microphone found; connect one or use --input" in refused(
        "host", server, *key, *output
    )
    assert "no microphone found" in refused("host", server, *key, *output, "--microphone", "USB")
    assert "no speakers found" in refused("devices", "--test")
    listed = CliRunner().invoke(main, ["devices"])
    assert listed.exit_code == 0
    assert listed.stdout.splitlines() == ["microphone: none found", "speakers: none found"]


def test_the_version() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("spaces ")


# --- the crowd


def events_of(lines: list[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in lines]


def test_a_crowd_fills_a_space(server: str, tmp_path: Path) -> None:
    recording = tmp_path / "heard.wav"
    arguments = ["--speakers", 2, "--listeners", 3, "--seconds", 1.5, "--record", recording]
    result = CliRunner().invoke(main, ["crowd", server, *map(str, arguments)])
    assert result.exit_code == 0, result.stderr
    joined, *progress, summary = events_of(result.stdout.splitlines())
    assert joined["event"] == "joined"
    assert [event["event"] for event in progress] == ["progress"] * 3
    assert progress[-1]["seconds"] == pytest.approx(1.5, abs=0.4)
    assert summary["event"] == "summary"
    listeners = summary["listeners"]
    assert isinstance(listeners, list)
    assert len(listeners) == 3
    assert all(one["received"] > 20 for one in listeners)
    heard = samples_of(recording)
    assert 1.45 <= len(heard) / SAMPLE_RATE_HZ <= 3
    assert np.sqrt(np.mean(heard**2)) > 0.01


def test_a_crowd_that_is_stopped_says_what_it_saw(server: str) -> None:
    arguments = ["--speakers", 1, "--listeners", 1, "--seconds", 600]
    with Command("spaces_client", "crowd", server, *arguments) as crowd:
        link = json.loads(crowd.line('"joined"'))["link"]
        crowd.line('"progress"', 2)
        # Nobody speaks without an invite.
        assert "speakers need a link with an invite" in refused("crowd", link, "--speakers", 1)
        assert crowd.end(signal.SIGTERM) == 0
        assert events_of(crowd.out)[-1]["event"] == "summary"
        assert crowd.err == []


def test_a_crowd_that_does_not_fit(tmp_path: Path) -> None:
    with ServerCommand(tmp_path, "--max-people", 5) as server:
        arguments = ("--speakers", 1, "--listeners", 20, "--seconds", 1)
        assert "the server is full" in refused("crowd", server.link, *arguments)


def test_a_crowd_whose_server_stops(tmp_path: Path) -> None:
    with (
        ServerCommand(tmp_path) as server,
        Command("spaces_client", "crowd", server.link, "--speakers", 1, "--seconds", 600) as crowd,
    ):
        crowd.line('"progress"')
        assert server.end(signal.SIGTERM) == 0
        assert crowd.end() == 1
        assert crowd.err == ["Error: 11 of 11 lost their session: the server is shutting down"]


def test_a_crowd_with_nothing_to_say(server: str, tmp_path: Path) -> None:
    assert "at least one speaker" in refused("crowd", server)
    says = refused("crowd", server, "--speakers", 1, "--voices", tmp_path)
    assert "there is no .wav file in" in says
    says = refused("crowd", server, "--speakers", 1, "--record", tmp_path / "no" / "x.wav")
    assert "cannot write" in says
