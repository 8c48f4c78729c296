"""The commands as far as they need no server: their help, their arguments, their lists, the user's
folder, and sound in files."""

import json
import os
import time
import wave
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from protocol import frames, notes
from protocol.frames import Access, Category, Person
from protocol.link import Link
from spaces_client import words
from spaces_client.audio import SAMPLE_RATE_HZ, AudioError, Samples
from spaces_client.cli import main
from spaces_client.commands import room
from spaces_client.commands.common import (
    HandleType,
    PlaceType,
    SpaceIdType,
    TextType,
    TokenType,
    WordType,
    columns,
    show_list,
)
from spaces_client.commands.finding import DurationType, TimeType
from spaces_client.commands.recording import in_a_row, note_of, write_recording
from spaces_client.home import Home, HomeError
from spaces_client.synth import synthesise_voice
from spaces_client.wav import read_blocks, to_pcm16
from spaces_server.cli import main as server

LINK = Link("rooms.example.org", 5004, bytes(31) + b"\x09")


def commands(
    group: click.Group = main, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


# -- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "path"),
    [
        *(("spaces", path) for path, _ in commands()),
        *(("spaces-server", path) for path, _ in commands(server)),
    ],
    ids=str,
)
def test_every_command_says_what_it_does_with_an_example(
    program: str, path: tuple[str, ...]
) -> None:
    result = CliRunner().invoke(main if program == "spaces" else server, [*path, "--help"])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[2].strip().endswith((".", "…", ":")) or len(lines[2]) > 60
    assert any(line.startswith(f"  {program} {' '.join(path)}") for line in lines)


def test_help_shows_every_command_under_a_topic() -> None:
    shown = CliRunner().invoke(main, ["--help"]).stdout
    for name in main.commands:
        assert sum(line.startswith(f"  {name} ") for line in shown.splitlines()) == 1, name


def test_every_list_comes_as_json_too() -> None:
    lists = [command for _, command in commands() if any(p.name == "limit" for p in command.params)]
    assert len(lists) >= 11
    for command in lists:
        assert any(p.name == "as_json" for p in command.params), command.name


# -- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "typed", "meant"),
    [
        (HandleType(), " @Ada", "Ada"),
        (WordType(Category), "self-harm", Category.SELF_HARM),
        (WordType(Access), "limited", Access.LIMITED),
        (TextType(5), "hello", "hello"),
        (TextType(5, lines=True), "a\nb", "a\nb"),
        (SpaceIdType(), "kX3v-_", "kX3v-_"),
        (TokenType(), "abc", "abc"),
        (PlaceType(), "kX3v", "kX3v"),
        (PlaceType(), str(LINK), LINK),
    ],
)
def test_an_argument(kind: click.ParamType[object], typed: str, meant: object) -> None:
    found = kind.convert(typed, None, None)
    assert (found, type(found)) == (meant, type(meant))


@pytest.mark.parametrize(
    ("kind", "typed", "says"),
    [
        (HandleType(), "@", "a handle has 1 to 30 characters"),
        (HandleType(), "x" * 31, "a handle has 1 to 30 characters"),
        (WordType(Category), "rude", "is not one of 'harassment'"),
        (WordType(Category), "self_harm", "is not one of 'harassment'"),
        (TextType(5), "  ", "1 to 5 characters"),
        (TextType(5), "123456", "1 to 5 characters, please, not 6"),
        (TextType(5), "a\nb", "no control characters"),
        (TextType(5, lines=True), "\x1b[2J", "no control characters"),
        (SpaceIdType(), "a b", "neither a link nor the id of a space"),
        (SpaceIdType(), "abc\n", "neither a link nor the id of a space"),
        (PlaceType(), "https://example.org", "a link starts with spaces://"),
        (TokenType(), "a=b", "is not a code"),
        (TimeType(), "tomorrow", 'a time looks like "2026-12-01 19:00"'),
        (TimeType(), "2026-13-01 19:00", "no calendar has that time"),
        (TimeType(), "2020-12-01T19:00", "that time has passed"),
        (DurationType(), "90", "looks like 90m, 2h or 1d12h"),
        (DurationType(), "2h soon", "looks like 90m, 2h or 1d12h"),
        (DurationType(), "٢h", "looks like 90m, 2h or 1d12h"),
    ],
)
def test_an_argument_that_is_wrong(kind: click.ParamType[object], typed: str, says: str) -> None:
    with pytest.raises(click.BadParameter) as error:
        kind.convert(typed, None, None)
    assert says in error.value.message


def test_durations() -> None:
    for typed, seconds in (("90m", 5_400), ("2h", 7_200), ("1d12h", 129_600)):
        assert DurationType().convert(typed, None, None).total_seconds() == seconds


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("schedule", "Tea"), "say when"),
        (("schedule", "Tea", "--in", "2h", "--at", "2026-12-01 19:00"), "say when"),
        (("schedule", "Tea", "--at", "tomorrow"), "Invalid value for '--at'"),
        (("post",), "there is nothing to post"),
        (("post", "--note", "FILE", "--record", "3"), "one voice note: --note or --record"),
        (("report", "--category", "spam"), "whom do you report"),
        (("report", "eve", "--space", "x", "--category", "spam"), "whom do you report"),
        (("claim", "one", "two", "three"), "too many words"),
        (("host", "--scheduled", "x", "--title", "y"), "its title and settings already"),
        (("host", "--scheduled", "x", "--slow", "3"), "its title and settings already"),
        (("register", str(LINK)), "Missing option '--handle'"),
        (("message", "ada", "\x1b[31m"), "no control characters"),
    ],
)
def test_what_cannot_be_asked_for_is_said_before_anybody_is_asked(
    arguments: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    file = tmp_path / "note.wav"
    file.touch()
    given = [str(file) if word == "FILE" else word for word in arguments]
    # Nothing listens there: whoever asked would hear of that.
    server = Link("127.0.0.1", 9, LINK.key)
    identity = ["--server", str(server), "--identity", str(tmp_path / "key")]
    result = CliRunner().invoke(main, [*given, *identity])
    assert result.exit_code == 2
    assert says in result.stderr.splitlines()[-1]


# -- the user's folder -----------------------------------------------------------------------------


def test_the_server_is_remembered_beside_the_identity(tmp_path: Path) -> None:
    home = Home(tmp_path / "ada" / "key")
    with pytest.raises(HomeError, match="no server is known here yet; register"):
        home.server()
    home.remember(Link(LINK.host, LINK.port, LINK.key, "room", "token"))
    assert home.server() == LINK
    assert Home(tmp_path / "ada" / "key").server() == LINK
    assert home.place("den") == Link(LINK.host, LINK.port, LINK.key, "den")
    assert home.place(LINK) == LINK
    home.remember(Link("other.example.org", 1, LINK.key))
    assert home.server().host == "other.example.org"
    assert os.listdir(tmp_path / "ada") == ["server"]  # no drafts are left
    assert Home(tmp_path / "ada" / "key", LINK).server() == LINK  # --server


def test_a_folder_that_is_damaged(tmp_path: Path) -> None:
    home = Home(tmp_path / "key")
    for content in (b"nonsense\n", b"\xff\xfe", b""):
        (tmp_path / "server").write_bytes(content)
        with pytest.raises(HomeError, match="is damaged"):
            home.server()
    (tmp_path / "server").unlink()
    (tmp_path / "server").mkdir()
    with pytest.raises(HomeError, match="cannot be read: Is a directory"):
        home.server()
    with pytest.raises(HomeError, match="cannot be written"):
        home.remember(LINK)
    assert os.listdir(tmp_path) == ["server"]


def test_the_environment_chooses_too(tmp_path: Path) -> None:
    environment = {"SPACES_SERVER": "nonsense", "SPACES_IDENTITY": str(tmp_path / "key")}
    result = CliRunner().invoke(main, ["whoami"], env=environment)
    assert "(env var: 'SPACES_SERVER'): a link starts with spaces://" in result.stderr
    environment["SPACES_SERVER"] = ""
    result = CliRunner().invoke(main, ["whoami"], env=environment)
    assert result.exit_code == 1
    assert "no server is known here yet" in result.stderr


# -- lists ---------------------------------------------------------------------------------------


async def people(count: int) -> AsyncIterator[Person]:
    for number in range(count):
        yield Person(handle=f"p{number}", name="\x1b李" * number + "x")


async def listed(
    capsys: pytest.CaptureFixture[str], count: int, **options: object
) -> tuple[list[str], list[str]]:
    chosen: dict[str, object] = {"limit": 3, "as_json": False, "nothing": "nobody", **options}
    await show_list(
        people(count),
        lambda p: (words.person(p.name, p.handle), "follows you"),
        **chosen,  # type: ignore[arg-type]  # of several types
    )
    out, err = capsys.readouterr()
    return out.splitlines(), err.splitlines()


async def test_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert await listed(capsys, 0) == (["nobody"], [])
    out, err = await listed(capsys, 3)
    assert out == [
        "x @p0        follows you",
        "\ufffd李x @p1     follows you",
        "\ufffd李\ufffd李x @p2  follows you",
    ]
    assert err == []
    out, err = await listed(capsys, 4)
    assert (len(out), err) == (3, ["there are more: --limit shows them"])
    out, _ = await listed(capsys, 2, newest_last=True)
    assert [line.split()[1] for line in out] == ["@p1", "@p0"]


async def test_a_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = await listed(capsys, 2, as_json=True)
    assert all(line.isascii() and line.isprintable() for line in out)
    assert json.loads(out[1]) == {
        "handle": "p1", "name": "\x1b李x", "following": False, "follows_you": False,
        "blocked": False,
    }  # fmt: skip
    assert await listed(capsys, 0, as_json=True) == ([], [])


def test_columns_of_lines_of_several_lengths() -> None:
    assert columns([("a", "b", "c"), ("aaa", ""), ()]) == ["a    b  c", "aaa", ""]


# -- words ---------------------------------------------------------------------------------------


def test_times_are_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    time.tzset()
    try:
        assert words.local_time(1_795_347_528) == "2026-11-23 00:38"
        assert words.local_time(0xFFFF_FFFF) == "2106-02-07 19:28"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_how_long() -> None:
    for seconds, said in ((-5, "0 s"), (59, "59 s"), (90, "2 min"), (7_200, "2 h"), (9e5, "10 d")):
        assert words.for_how_long(seconds) == said


def test_an_id_that_looks_like_an_option_can_be_typed() -> None:
    assert (words.argument("abc"), words.argument("-abc")) == ("abc", "-- -abc")


# -- sound in files --------------------------------------------------------------------------------


def wav(path: Path, samples: Samples, rate_hz: int = SAMPLE_RATE_HZ) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(to_pcm16(samples).tobytes())
    return path


def test_a_voice_note_from_a_file_and_back(tmp_path: Path) -> None:
    said = synthesise_voice(1, 1.0)
    note = note_of(wav(tmp_path / "said.wav", said))
    assert notes.duration_ms(note) == 1_000
    assert write_recording(tmp_path / "heard.wav", in_a_row(notes.unpack(note))) == 1.0
    heard = np.concatenate(list(read_blocks(tmp_path / "heard.wav")))
    assert np.sqrt(np.mean(heard**2)) == pytest.approx(np.sqrt(np.mean(said**2)), rel=0.3)


def test_a_recording_with_pauses_and_damage(tmp_path: Path) -> None:
    note = note_of(wav(tmp_path / "said.wav", synthesise_voice(1, 0.06)))
    one, two, three = notes.unpack(note)
    start = 0xFFFF_FFFF - 1_000  # the timestamps wrap
    recording = [
        (start, one),
        (start + 960 + 480, two),  # 10 ms later than it follows on
        (start + 960, b"\xff" * 3),
        (start, three),  # too late
        (start + 100 * SAMPLE_RATE_HZ, three),  # a pause that is shortened to 2 s
    ]
    wrapped = [(timestamp & 0xFFFF_FFFF, packet) for timestamp, packet in recording]
    assert write_recording(tmp_path / "r.wav", wrapped) == pytest.approx(4 * 0.02 + 0.01 + 2)


def test_files_that_cannot_be_a_note(tmp_path: Path) -> None:
    quiet = np.zeros(8_000 * 141, np.float32)
    with pytest.raises(AudioError, match="longer than a voice note, which has 140 s at most"):
        note_of(wav(tmp_path / "long.wav", quiet, 8_000))
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(AudioError, match="is not a WAV file"):
        note_of(tmp_path / "text.wav")
    with pytest.raises(AudioError, match="cannot write"):
        write_recording(tmp_path / "no" / "x.wav", [])


def test_words_of_reports_are_those_of_the_protocol() -> None:
    report = main.commands["report"]
    (category,) = [p for p in report.params if p.name == "category"]
    assert isinstance(category.type, WordType)
    assert len(category.type.choices) == len(frames.Category)


def test_nothing_is_done_to_music() -> None:
    processor, note = room._processor(True, music=True)
    assert processor is None
    assert "as it is" in note
