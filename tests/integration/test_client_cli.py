"""The commands of `spaces` as a person meets them, against a real server."""

import contextlib
import fcntl
import itertools
import json
import os
import platform
import pty
import re
import select
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
from spaces_client import client, devices, words
from spaces_client.audio import SAMPLE_RATE_HZ, Samples
from spaces_client.cli import main
from spaces_client.synth import synthesise_voice
from spaces_client.wav import read_blocks, to_pcm16
from tests.integration.processes import PATIENCE_S, Command, ServerCommand

_numbers = itertools.count()
KEY = "A" * 42 + "E"
VOICE_S = 2.0
PIECE_SAMPLES = SAMPLE_RATE_HZ // 4


def link_of(server: ServerCommand) -> str:
    """The log names it too, for the owner-to-be, and may come first."""
    found = re.search(r"spaces://[^'\s]+", server.link)
    assert found
    return found[0]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """-> the link of a server."""
    folder = tmp_path_factory.mktemp("server")
    with ServerCommand(folder, "--no-rate-limits") as command:  # many register from here
        yield link_of(command)
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
    energy = np.cumsum(np.concatenate(([0.0], np.square(recording, dtype=np.float64))))
    energy = energy[PIECE_SAMPLES:] - energy[:-PIECE_SAMPLES]  # of each stretch of that length
    energy += 1e-3 * energy.max()  # silence is like nothing
    found = []
    for start in range(0, len(said) - PIECE_SAMPLES + 1, PIECE_SAMPLES):
        piece = said[start : start + PIECE_SAMPLES]
        match = np.fft.irfft(spectrum * np.conj(np.fft.rfft(piece, size)), size)
        at = int(np.argmax(match[: len(energy)] / np.sqrt(energy)))
        part = recording[at : at + PIECE_SAMPLES]
        found.append(part @ piece / np.sqrt((part @ part) * (piece @ piece) + 1e-12))
    return float(np.median(found))


def handle_of(name: str) -> str:
    """One that nobody has yet."""
    return f"{name}_{next(_numbers)}"


def refused(*arguments: object, identity: Path | None = None) -> str:
    """Runs a command that must fail -> its one line."""
    with tempfile.TemporaryDirectory() as folder:
        # Not the key of who runs the tests.
        environment = {"SPACES_IDENTITY": str(identity or Path(folder) / "key")}
        if arguments[0] == "host" and "--handle" not in arguments:
            arguments += ("--handle", handle_of("somebody"))
        result: Result = CliRunner().invoke(main, list(map(str, arguments)), env=environment)
    assert isinstance(result.exception, SystemExit), result.exception  # no traceback
    assert result.exit_code != 0
    assert "spaces join" not in result.stdout  # no link to a space that is over already
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert result.stderr.splitlines()[-1] == errors[0]
    return errors[0]


def person(command: str, link: object, folder: Path, name: str, *options: object) -> Command:
    """Whoever has a handle among the options has an account, or gets one."""
    identity = folder / f"{name}.key"
    return Command("spaces_client", command, link, "--name", name, "--identity", identity, *options)


def host(link: object, folder: Path, name: str, *options: object) -> Command:
    return person("host", link, folder, name, "--handle", handle_of(name), *options)


# --- speaking and listening


@contextlib.contextmanager
def spoken(server: str, folder: Path, voice: Path, *options: object) -> Iterator[str]:
    """Ada hosts a space and speaks from a file -> the link for listeners."""
    with host(
        server, folder, "Ada", "--input", voice, "--loop", "--output", folder / "h.wav", *options
    ) as ada:
        yield ada.line("listeners join with:").split("'")[1]
        assert ada.end(signal.SIGINT) == 0
        assert ada.err == []


def recorded(server: str, folder: Path, voice: Path, *options: object) -> Path:
    """-> what Bob heard of Ada in three seconds."""
    heard = folder / "heard.wav"
    with (
        spoken(server, folder, voice, *options) as link,
        person(
            "join", link, folder, "Bob", "--listen-only", "--output", heard, "--seconds", 3
        ) as bob,
    ):
        bob.line("speaking: Ada")
        assert bob.end() == 0
        assert not bob.err, "\n".join(bob.err)
    return heard


def test_a_listener_records_what_the_host_says(server: str, voice: Path, tmp_path: Path) -> None:
    heard = recorded(server, tmp_path, voice)
    recording, said = samples_of(heard), samples_of(voice)
    assert 2.9 <= len(recording) / SAMPLE_RATE_HZ <= 4
    middle = said[SAMPLE_RATE_HZ // 2 : SAMPLE_RATE_HZ * 3 // 2]
    assert likeness(recording, middle) > 0.6
    loudness = np.sqrt(np.mean(recording**2) / np.mean(said**2))
    assert 0.5 < loudness < 1.5


def test_stats_of_a_space(server: str, voice: Path, tmp_path: Path) -> None:
    with spoken(server, tmp_path, voice) as link:
        with person("stats", link, tmp_path, "Bob", "--seconds", 2.5, "--json") as bob:
            assert bob.end() == 0
            assert not bob.err, "\n".join(bob.err)
        with person("stats", link, tmp_path, "Bob", "--seconds", 2) as cleo:
            cleo.line("ms from mouth to ear")
            assert cleo.end() == 0
    found = [json.loads(line) for line in bob.out]
    assert len(found) == 3
    stats = found[-1]
    [speaker] = stats["speakers"]
    assert speaker["name"] == "Ada"
    assert 20 < speaker["delay_ms"] < 2_000  # no timing is asserted: it is a delay at all
    assert stats["received"] > 0
    assert stats["clock_error_ms"] >= 0


def test_a_space_of_low_delay(server: str, voice: Path, tmp_path: Path) -> None:
    heard = recorded(server, tmp_path, voice, "--low-delay")
    said = samples_of(voice)
    middle = said[SAMPLE_RATE_HZ // 2 : SAMPLE_RATE_HZ * 3 // 2]
    assert likeness(samples_of(heard), middle) > 0.6


def test_a_space_for_music_is_in_stereo(server: str, tmp_path: Path) -> None:
    """Two tones, one on each side, stay apart from file to file."""
    said = tmp_path / "music.wav"
    at = np.arange(3 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    sides = [0.3 * np.sin(2 * np.pi * hz * at) for hz in (400, 1_000)]
    with wave.open(str(said), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes(to_pcm16(np.stack(sides, axis=1).astype(np.float32)).tobytes())
    heard = recorded(server, tmp_path, said, "--profile", "music")
    blocks = np.concatenate(list(read_blocks(heard, channels=2)))
    end = blocks[-SAMPLE_RATE_HZ:]
    spectrum = np.abs(np.fft.rfft(end * np.hanning(len(end))[:, None], axis=0))
    powers = np.stack([np.square(spectrum[hz - 20 : hz + 21]).sum(axis=0) for hz in (400, 1_000)])
    assert powers[0, 0] > 100 * powers[1, 0], "left"
    assert powers[1, 1] > 100 * powers[0, 1], "right"
    with wave.open(str(heard)) as file:
        assert file.getnchannels() == 2
        assert file.getnframes() / SAMPLE_RATE_HZ == pytest.approx(3, abs=1)


def test_who_raises_a_hand_and_is_brought_up_speaks_from_the_file(
    server: str, voice: Path, tmp_path: Path
) -> None:
    recorded = tmp_path / "host.wav"
    with host(server, tmp_path, "Ada", "--input", voice, "--loop", "--output", recorded) as ada:
        link = ada.line("listeners join with:").split("'")[1]
        with person(
            "join",
            link,
            tmp_path,
            "Bob",
            "--input",
            voice,
            "--output",
            tmp_path / "b.wav",
            "--handle",
            handle_of("bob"),
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
    assert "this space has ended" in refused("join", link, "--listen-only")
    said = samples_of(voice)
    recording = samples_of(recorded)
    assert likeness(recording, said[SAMPLE_RATE_HZ // 2 :]) > 0.6
    assert likeness(recording, said[-SAMPLE_RATE_HZ // 4 :]) > 0.6  # the last words as well


def test_a_server_that_is_started_again_finds_everybody_in_their_places(tmp_path: Path) -> None:
    with ServerCommand(tmp_path) as server:
        port = Link.parse(link_of(server)).port
        with host(link_of(server), tmp_path, "Ada", "--listen-only", "--output", os.devnull) as ada:
            ada.line("speakers join with:")
            assert server.end(signal.SIGTERM) == 0
            ada.line("the connection is lost (the server is shutting down); trying again …")
            with ServerCommand(tmp_path, "--port", port) as again:
                ada.line("connected again")
                ada.enter("/set title Tea at six")  # she is the host still
                ada.line("the title is: Tea at six")
                ada.enter("/quit")
                assert ada.end() == 0
                assert ada.err == []
                assert again.end(signal.SIGTERM) == 0


def test_the_same_identity_twice_is_one_person(server: str, tmp_path: Path) -> None:
    options = ("--listen-only", "--output", os.devnull)
    with host(server, tmp_path, "Ada", *options) as first:
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
            assert select.select([ours], [], [], PATIENCE_S)[0], f"no {wanted!r} in {shown!r}"
            shown += os.read(ours, 65_536).decode(errors="replace")
        shown = shown.partition(wanted)[2]

    command = [sys.executable, "-m", "spaces_client", "host", server, "--title", "Tea"]
    command += [
        "--name",
        "李 Ada",
        "--handle",
        handle_of("li"),
        "--identity",
        str(tmp_path / "key"),
    ]
    command += ["--listen-only", "--output", os.devnull]
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
            os.write(ours, "how do you do? 李\r".encode())
            read_until("[1] 李 Ada")
            read_until("how do you do? 李")
            os.write(ours, b"/quit\r")
            assert process.wait(PATIENCE_S) == 0
            assert termios.tcgetattr(theirs)[3] & termios.ECHO
        finally:
            process.kill()
    os.close(theirs)
    os.close(ours)


# --- everything else that one does at a server


class At:
    """Somebody who runs one command after another, with an identity and a remembered server."""

    def __init__(self, folder: Path, name: str) -> None:
        self.handle = handle_of(name)
        self.identity = folder / self.handle / "key"

    def __call__(self, *typed: object) -> list[str]:
        """-> the lines of both streams."""
        environment = {"SPACES_IDENTITY": str(self.identity)}
        result = CliRunner().invoke(main, list(map(str, typed)), env=environment)
        assert result.exit_code == 0, (typed, result.output)
        return result.output.splitlines()

    def json(self, *typed: object) -> list[dict[str, object]]:
        return [json.loads(line) for line in self(*typed, "--json")]

    def refused(self, *typed: object) -> str:
        return refused(*typed, identity=self.identity)


def test_accounts_devices_and_people(server: str, tmp_path: Path) -> None:
    ada, bob, phone = (At(tmp_path, name) for name in ("ada", "bob", "phone"))
    assert "a handle has a letter in it (choose one with --handle)" in ada.refused(
        "register", server, "--handle", "1234"
    )
    assert "this needs an account; register first (spaces register" in ada.refused(
        "whoami", "--server", server
    )
    assert "no server is known here yet" in ada.refused("whoami")
    said = ada("register", server, "--handle", f"@{ada.handle.upper()}", "--name", "Ada Lovelace")
    assert said == [f"you are @{ada.handle} here now"]
    assert "this device belongs to an account" in ada.refused("register", server, "--handle", "x")
    assert "or one that looks like it (choose another with --handle)" in bob.refused(
        "register", server, "--handle", ada.handle
    )
    bob("register", server, "--handle", bob.handle)
    assert ada("whoami")[0] == f"Ada Lovelace @{ada.handle}"
    assert ada("rename", "Countess")[0] == f"Countess @{ada.handle}"

    code = ada("device", "code")[1].split()[4]
    assert "this code is not valid" in phone.refused(
        "device", "add", server, "wrong", "--label", "x"
    )
    phone("device", "add", server, code)
    assert phone.json("whoami")[0]["handle"] == ada.handle
    assert ada.json("device", "list")[1]["label"] == platform.node()[:40]
    ada("device", "remove", 2)
    assert "this needs an account" in phone.refused("whoami")
    assert "the last device" in ada.refused("device", "remove", 1)

    assert bob("find", f"@{ada.handle}") == [f"Countess @{ada.handle}"]
    assert bob("follow", ada.handle) == [f"you follow @{ada.handle}"]
    assert ada("followers") == [f"{bob.handle} @{bob.handle}  follows you"]
    assert bob.json("following")[0]["following"] is True
    assert bob("following", ada.handle) == ["nobody"]
    bob("unfollow", ada.handle)
    assert ada("followers") == ["nobody"]
    bob("block", ada.handle)
    assert bob("blocked") == [f"Countess @{ada.handle}  blocked"]
    assert "you have blocked this person" in bob.refused("message", ada.handle, "hi")
    bob("unblock", ada.handle)
    assert bob("blocked") == ["nobody"]
    assert "nobody has this handle" in bob.refused("find", "nobody_at_all")
    assert "to oneself" in bob.refused("follow", bob.handle)


def test_scheduling_messages_and_posts(server: str, voice: Path, tmp_path: Path) -> None:
    ada, bob = At(tmp_path, "ada"), At(tmp_path, "bob")
    for one in (ada, bob):
        one("register", server, "--handle", one.handle)
    bob("follow", ada.handle)

    assert "up to 14 days ahead" in ada.refused("schedule", "Late", "--in", "15d")
    (tea,) = ada.json("schedule", "Tea", "--in", "2h", "--who-speaks", "everyone")
    assert any(str(tea["id"]) in line for line in bob("list", "--upcoming"))
    where = Link(Link.parse(server).host, Link.parse(server).port, Link.parse(server).key)
    link = Link(where.host, where.port, where.key, str(tea["id"]))
    assert f"link: {link}" in bob("show", link)
    bob("remind", link)
    assert "only its host" in bob.refused("cancel", "--", tea["id"])
    ada("post", "come to\ntea", "--space", tea["id"])
    recording = tmp_path / "recording.wav"
    with Command(
        "spaces_client", "host", "--scheduled", tea["id"], "--identity", ada.identity,
        "--listen-only", "--output", os.devnull, "--post", "now",
    ) as hosting:  # fmt: skip
        hosting.line("speakers join with:")
        lines = bob("list")
        assert f"“Tea” of @{ada.handle} has started: spaces join" in lines[0]
        assert str(tea["id"]) in lines[1]
        hosting.enter(f"/ask {bob.handle} speaker")
        hosting.line(f"@{bob.handle} has a message with an invitation")
        lines = bob("messages")
        assert lines[0] == "you have new messages: spaces messages"
        invitation = lines[1].split("'")[1]
        with Command(
            "spaces_client", "join", invitation, "--identity", bob.identity,
            "--input", voice, "--output", recording,
        ) as speaking:  # fmt: skip
            hosting.line(f"{bob.handle} (2) is on stage")
            speaking.enter("so this is tea")
            hosting.line(f"[1] {bob.handle} @{bob.handle}: so this is tea")
            speaking.enter("/react 3")
            hosting.line("×1")
            bob("message", ada.handle, "thank you")
            hosting.line(f"@{bob.handle} writes: thank you")
            assert speaking.end() == 0
            assert speaking.err == []
        hosting.enter("/end")
        assert hosting.end() == 0
        assert hosting.err == []
    assert "this space has ended" in bob.refused("join", link)
    feed = bob("home")
    assert feed[1:4] == [
        "    come to",
        "    tea",
        f"    spaces join {words.argument(str(link.space))}",
    ]
    assert bob("whoami")[0] == f"{bob.handle} @{bob.handle}"  # the notices came once

    ada("post", "--note", voice)
    note = bob.json("home", "--limit", 1)[0]
    assert note["note_ms"] == VOICE_S * 1_000
    assert bob("play", note["id"], "--output", recording) == [
        f"wrote {VOICE_S:.1f} s to {recording}"
    ]
    assert len(samples_of(recording)) == VOICE_S * SAMPLE_RATE_HZ
    assert "your role does not allow this" in bob.refused("delete-post", note["id"])
    ada("delete-post", note["id"])
    assert "no such post" in bob.refused("play", note["id"])
    assert bob.json("messages", ada.handle)[-1]["text"] == "thank you"


def test_moderating_a_limited_server(voice: Path, tmp_path: Path) -> None:
    with ServerCommand(tmp_path, "--evidence", "--access", "limited") as command:
        server = link_of(command)
        code = command.line("spaces claim").split()[-1]
        ada, bob, eve = (At(tmp_path, name) for name in ("ada", "bob", "eve"))
        for one in (ada, bob, eve):
            one("register", server, "--handle", one.handle)
        ada("claim", server, code)
        assert "this code is not valid" in bob.refused("claim", code)
        assert "is limited: ask for access" in bob.refused("list")
        bob("ask-access", "--note", "let me in")
        assert ada("ask-access") == ["you have access already"]
        (waits,) = ada("moderate", "waiting")
        assert waits.startswith(f"{bob.handle} @{bob.handle}")
        assert waits.endswith("let me in")
        ada("moderate", "grant", bob.handle)
        assert f"you have access to this server now; @{ada.handle} gave it" in bob("list")
        assert "your role does not allow this" in bob.refused("moderate", "waiting")
        ada("moderate", "access", "open")

        with Command(
            "spaces_client", "host", "--identity", eve.identity, "--input", voice, "--loop",
            "--output", os.devnull,
        ) as shouting:  # fmt: skip
            link = shouting.line("listeners join with:").split("'")[1]
            with Command(
                "spaces_client", "join", link, "--identity", bob.identity, "--listen-only",
                "--output", os.devnull,
            ) as listening:  # fmt: skip
                listening.line("what they said in the last 30 s goes with the report")
                listening.line("speaking: ")
                listening.enter(f"/report @{eve.handle} harassment shouts")
                listening.line("what they said last goes with it, sealed")
                (report,) = ada.json("moderate", "reports")
                said = tmp_path / "said.wav"
                ada("moderate", "evidence", report["id"], "--output", said)
                assert np.sqrt(np.mean(samples_of(said) ** 2)) > 0.01
                ada("moderate", "act", report["id"], "ban", "--note", "no shouting")
                listening.line("your report 1: ")
                assert shouting.end() == 1
                listening.line("the space is over")  # without its host
                assert listening.end() == 0
        assert "you are banned from this server" in eve.refused("list")
        assert [a["handle"] for a in ada.json("moderate", "accounts", "--banned")] == [eve.handle]
        assert ada("moderate", "reports") == ["no reports"]
        assert "[ban, by @" in ada("moderate", "reports", "--closed")[0]
        ada("moderate", "unban", eve.handle)
        ada("moderate", "appoint", bob.handle)
        assert len(bob.json("moderate", "accounts", "--moderators")) == 2
        ada("moderate", "dismiss", bob.handle)
        (space,) = bob.json("schedule", "Tea", "--in", "1h")
        ada("moderate", "close", "--", space["id"])
        assert "this space has ended" in bob.refused("remind", "--", space["id"])
        assert command.end(signal.SIGTERM) == 0


def test_somebody_who_was_blocked_is_on_stage(server: str, tmp_path: Path) -> None:
    bob = At(tmp_path, "bob")
    bob("register", server, "--handle", bob.handle)
    eve = handle_of("eve")
    with person(
        "host", server, tmp_path, "Eve", "--handle", eve, "--listen-only", "--output", os.devnull
    ) as hosting:
        link = hosting.line("listeners join with:").split("'")[1]
        bob("block", eve)
        options = ("--listen-only", "--output", os.devnull, "--seconds", 0.5)
        assert "--despite-blocked" in bob.refused("join", link, *options)
        bob("join", link, "--despite-blocked", *options)
        hosting.enter("/remove 2")  # a number that is no longer anybody's
        hosting.line("nobody with this number is in the space")
        hosting.enter("/quit")
        assert hosting.end() == 0


def test_whoever_speaks_from_a_file_stays_when_taken_down(
    server: str, voice: Path, tmp_path: Path
) -> None:
    ada, bob = handle_of("ada"), handle_of("bob")
    quiet = ("--output", os.devnull)
    with person(
        "host", server, tmp_path, "Ada", "--handle", ada, "--listen-only", *quiet
    ) as hosting:
        link = hosting.line("speakers join with:").split("'")[1]
        with person(
            "join", link, tmp_path, "Bob", "--handle", bob, "--input", voice, "--loop", *quiet
        ) as speaking:
            hosting.line("Bob (2) is on stage")
            hosting.enter(f"/down @{bob}")
            speaking.line("you are off the stage")
            speaking.enter("/who")
            speaking.line("here: ")
            hosting.enter(f"/offer @{bob}")
            speaking.line("invites you to speak")
            speaking.enter("/decline")
            hosting.line("Bob (2) declines to speak")
            speaking.enter("/quit")
            assert speaking.end() == 0
        hosting.enter("/quit")
        assert hosting.end() == 0


# --- what cannot work


@pytest.mark.parametrize(
    ("link", "says"),
    [
        ("nonsense", "no server is known here yet"),  # the id of a space, but where?
        ("nonsense://", "a link starts with spaces://"),
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
    assert "there is no such space" in refused("join", nowhere)
    assert "there is no such space" in refused("crowd", nowhere)


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
    assert "no control characters" in refused("host", server, "--name", "\x1b[31mred")
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
        assert "the server is full" in refused("crowd", link_of(server), *arguments)


def test_a_crowd_whose_server_stops(tmp_path: Path) -> None:
    with (
        ServerCommand(tmp_path) as server,
        Command(
            "spaces_client", "crowd", link_of(server), "--speakers", 1, "--seconds", 600
        ) as crowd,
    ):
        crowd.line('"progress"')
        assert server.end(signal.SIGTERM) == 0
        assert crowd.end() == 1
        assert crowd.err[0].startswith("Error: 11 of 11 lost their session: ")


def test_a_crowd_with_nothing_to_say(server: str, tmp_path: Path) -> None:
    assert "at least one speaker" in refused("crowd", server)
    says = refused("crowd", server, "--speakers", 1, "--voices", tmp_path)
    assert "there is no .wav file in" in says
    says = refused("crowd", server, "--speakers", 1, "--record", tmp_path / "no" / "x.wav")
    assert "cannot write" in says
