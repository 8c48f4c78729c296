"""`spaces-server run` as an operator meets it."""

import asyncio
import contextlib
import json
import os
import pty
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from protocol.frames import Category, ErrorCode
from protocol.keyfile import load_key
from protocol.link import Link
from protocol.noise import public_key
from spaces_client.events import Disconnected, Ended, Reconnecting
from spaces_client.live import SpacesError, connect, host, session
from spaces_server.cli import main
from tests.integration.postgres import Postgres
from tests.integration.postgres import postgres as postgres  # a fixture
from tests.integration.processes import PATIENCE_S, Command, ServerCommand
from tests.integration.test_live import happens, registered

ADA, BEN, CYD, DAN = (bytes([n]) * 32 for n in (3, 4, 5, 6))  # their private keys
People = Callable[[Coroutine[Any, Any, Any]], Any]


def refused(*arguments: object, env: dict[str, str] | None = None) -> str:
    """Runs the command, which must not start; -> its one line."""
    result: Result = CliRunner().invoke(main, ["run", *map(str, arguments)], env=env)
    assert isinstance(result.exception, SystemExit), result.exception  # no traceback
    assert result.exit_code != 0
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert result.stderr.splitlines()[-1] == errors[0]
    return errors[0]


def test_the_first_start_makes_a_key_and_later_ones_keep_it(tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    with ServerCommand(tmp_path, "--stats", stats) as first:
        data = tmp_path / "data"
        assert stat.S_IMODE(data.stat().st_mode) == 0o700
        assert stat.S_IMODE((data / "server.key").stat().st_mode) == 0o600
        key, new = load_key(data / "server.key")
        assert not new
        link = Link.parse(first.link)
        assert (link.host, link.key, link.space) == ("127.0.0.1", public_key(key), None)
        first.line("made a new server key")
        first.line(f"listens on UDP port {link.port}")
        assert first.out == [first.link]  # no QR code where nobody looks
        assert first.end(signal.SIGTERM) == 0
        assert first.err[-1].endswith(" stopped")
        assert json.loads(stats.read_text())["most_sessions"] == 0
    with ServerCommand(tmp_path) as second:
        assert Link.parse(second.link).key == link.key
        assert second.end(signal.SIGINT) == 0
        assert not [line for line in second.err if "made" in line or "Traceback" in line]


async def test_those_who_are_there_are_told_that_the_server_stops(tmp_path: Path) -> None:
    with ServerCommand(tmp_path) as server:
        await registered(Link.parse(server.link), ada=ADA)
        async with host(server.link, title="Talk", key=ADA) as space:
            server.process.send_signal(signal.SIGTERM)
            event = await happens(space, Reconnecting)
            assert event.text == "the server is shutting down"
        assert server.end() == 0


def test_on_a_terminal_the_link_is_shown_as_a_qr_code_too(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "spaces_server", "run", "--port", "0", "--data", str(tmp_path)]
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL) as process:
        os.close(theirs)
        try:
            shown = ""
            while "Open a space with:" not in shown:
                shown += os.read(ours, 65_536).decode()
            assert "spaces://" in shown
            assert "▄▄▄▄▄" in shown  # a finder pattern's edge
        finally:
            process.send_signal(signal.SIGTERM)
        os.close(ours)
        assert process.wait() == 0


def test_a_flag_goes_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    config = tmp_path / "spaces.toml"
    data = tmp_path / "from-toml"
    config.write_text(
        f'data = "{data}"\nhost = "127.0.0.1"\nport = 1\npublic-host = "toml.example"\nqr = false\n'
    )
    env = {"SPACES_PUBLIC_HOST": "env.example", "SPACES_PORT": "2"}
    with Command("spaces_server", "run", "--config", config, "--port", 0, env=env) as server:
        link = Link.parse(server.line("spaces://", printed=True))
        assert (data / "server.key").exists()  # file before default
        assert link.host == "env.example"  # environment before file
        assert link.port > 2  # flag before both
        assert server.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("port = ", "is not valid TOML"),
        ("prot = 5004", "there is no option 'prot'"),
        ('config = "other.toml"', "there is no option 'config'"),
        ('port = "many"', "port: 'many' is not"),
        ("port = 70000", "port: 70000 is not in the range"),
        ("port = true", "port: 'True' is not"),
        ("port = 1.5", "port: '1.5' is not"),
        ("port = [5004]", "port: an option takes one value"),
        ("[server]\nport = 5004", "server: an option takes one value"),
        ('qr = "perhaps"', "qr: 'perhaps' is not"),
        ('public_host = "a b"', "'a b' is no name or address"),
    ],
)
def test_a_config_file_that_is_wrong(tmp_path: Path, toml: str, says: str) -> None:
    config = tmp_path / "spaces.toml"
    config.write_text(toml)
    assert says in refused("--config", config, "--data", tmp_path / "data")


def test_a_config_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refused("--config", tmp_path / "none.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    assert "is not valid TOML" in refused("--config", binary)


def test_options_that_are_wrong(tmp_path: Path) -> None:
    data = ("--data", tmp_path / "data", "--port", 0)
    assert "70000 is not in the range" in refused("--port", 70_000)
    assert "'x' is not" in refused(env={"SPACES_PORT": "x"})
    assert "no name or address" in refused(*data, "--public-host", "spaces://x/?")
    assert "No such file" in refused(*data, "--stats", tmp_path / "none" / "stats.json")
    assert "Is a directory" in refused(*data, "--stats", tmp_path)
    six, long = "a space has six different reactions", "one emoji of at most 24 bytes"
    for reactions, says in (
        ("", six),
        ("👏 🔥 💯 😮 😂", six),
        ("👏 🔥 💯 😮 😂 👏", six),
        (f"👏 🔥 💯 😮 😂 {'x' * 25}", long),
        ("👏 🔥 💯 😮 😂 \N{WAVING BLACK FLAG}" + "\N{TAG LATIN SMALL LETTER G}" * 6, long),
    ):
        assert says in refused(*data, "--reactions", reactions)
    for option, wrong, says in (
        ("--stage-size", 0, "0 is not in the range"),
        ("--stage-size", 33, "33 is not in the range"),
        ("--co-hosts", 32, "32 is not in the range"),
        ("--grace", 0, "0 is not in the range"),
        ("--evidence-days", 366, "366 is not in the range"),
        ("--max-spaces", 0, "0 is not in the range"),
        ("--crowd-above", -1, "-1 is not in the range"),
        ("--crowd-packet-ms", 30, "'30' is not one of '20', '40', '60'"),
        ("--access", "closed", "'closed' is not one of 'open', 'limited'"),
    ):
        assert says in refused(*data, option, wrong)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense", "is not of the form of a URL"),
        ("mysql://spaces:secret@localhost/spaces", "must be sqlite:///FILE or postgresql://"),
        ("postgresql://spaces:secret@localhost", "names no database"),
        ("postgresql://spaces:sec@ret@localhost/spaces", "must be written as %40"),
        ("postgresql://spaces:secret@127.0.0.1:1/spaces", "PostgreSQL database spaces: "),
        ("sqlite:////no/such/folder/spaces.db", "cannot be opened: No such file"),
    ],
)
def test_a_database_that_cannot_be_had(tmp_path: Path, url: str, says: str) -> None:
    error = refused("--data", tmp_path, "--port", 0, "--database", url)
    assert says in error
    assert "secret" not in error


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_database_that_another_server_uses(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    options: tuple[object, ...] = ()
    if kind == "postgres":
        postgres: Postgres = request.getfixturevalue("postgres")
        options = ("--database", postgres.emptied())
    with ServerCommand(tmp_path, *options) as first:
        error = refused("--data", tmp_path / "data", "--port", 0, *options)
        assert "is in use by another running server" in error
        assert "p@ss" not in error
        assert "p%40ss" not in error
        assert first.process.poll() is None


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda key: key.write_text("not a key\n"), "is damaged; restore it"),
        (lambda key: key.touch(), "is damaged; restore it"),
        (lambda key: key.mkdir(), "cannot be used: Is a directory"),
    ],
)
def test_a_key_that_cannot_be_used(
    tmp_path: Path, make: Callable[[Path], object], says: str
) -> None:
    key = tmp_path / "server.key"
    make(key)
    key.chmod(0o700 if key.is_dir() else 0o600)
    assert says in refused("--data", tmp_path, "--port", 0)


def test_a_key_that_others_can_read(tmp_path: Path) -> None:
    key = tmp_path / "server.key"
    load_key(key)
    key.chmod(0o644)
    assert f"run: chmod 600 {key}" in refused("--data", tmp_path, "--port", 0)


def test_a_data_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "Not a directory" in refused("--data", tmp_path / "file" / "data", "--port", 0)
    assert "is a file" in refused("--data", tmp_path / "file", "--port", 0)


def test_an_address_that_cannot_be_had(tmp_path: Path) -> None:
    data = ("--data", tmp_path)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        says = refused(*data, "--host", "127.0.0.1", "--port", port)
        assert f"UDP port {port} is already in use; choose another with --port" in says
    says = refused(*data, "--host", "192.0.2.1", "--port", 0)
    assert "'192.0.2.1' is not an address of this machine" in says
    says = refused(*data, "--host", "no.such.host.invalid", "--port", 0)
    assert "'no.such.host.invalid' is not known here" in says


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["run", "--help"]])
def test_what_one_asks_first(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0
    assert "libopus" in result.stdout or "Usage:" in result.stdout


# -- who owns the server ---------------------------------------------------------------------------


async def test_the_owner_code_is_in_the_log_while_there_is_no_owner(tmp_path: Path) -> None:
    def code(server: ServerCommand) -> str:
        return server.line("    spaces claim").split()[-1]

    with ServerCommand(tmp_path) as server:
        unused = code(server)
        server.end(signal.SIGTERM)
    with ServerCommand(tmp_path) as server:
        link = Link.parse(server.link)
        await registered(link, ada=ADA, ben=BEN)
        async with session(link, key=ADA) as ada, session(link, key=BEN) as ben:
            await refuses(ada.claim_server(unused), ErrorCode.BAD_CODE)  # each start has its own
            await ada.claim_server(code(server))
            assert (await ada.who_am_i()).account.role == "owner"
            await refuses(ben.claim_server(code(server)), ErrorCode.BAD_CODE)
        server.end(signal.SIGKILL)
    with ServerCommand(tmp_path) as server:
        server.end(signal.SIGTERM)
        assert not [line for line in server.err if "claim" in line]


# -- spaces-server admin ---------------------------------------------------------------------------


@pytest.fixture
def people() -> Iterator[People]:
    """Runs what people do, in an event loop of theirs: the commands have one of their own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield lambda work: asyncio.run_coroutine_threadsafe(work, loop).result(PATIENCE_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_all_commands_of_administration_on_the_running_server(
    tmp_path: Path, people: People
) -> None:
    def admin(*words: object) -> list[str]:
        return administered(tmp_path / "data", *words)

    with ServerCommand(tmp_path, "--no-rate-limits", "--evidence") as server:
        link = Link.parse(server.link)
        people(registered(link, ada=ADA, ben=BEN, cyd=CYD, dan=DAN))
        assert [line.split()[0] for line in admin("accounts")] == ["Ada", "Ben", "Cyd", "Dan"]
        assert admin("waiting") == ["nobody waits"]
        assert admin("access", "limited") == ["the server is limited"]
        assert admin("appoint", "@ada") == ["@ada moderates this server"]
        (line,) = admin("accounts", "--moderators")
        assert "moderator" in line
        assert admin("dismiss", "ada") == ["@ada does not moderate this server any more"]
        there = contextlib.AsyncExitStack()
        ada = people(there.enter_async_context(host(link, title="Talk", key=ADA)))
        ben = people(there.enter_async_context(connect(ada.link, key=BEN)))
        cyd = people(there.enter_async_context(session(link, key=CYD)))
        assert admin("revoke", "cyd") == ["@cyd has no access any more"]
        people(happens(cyd, Disconnected))
        cyd = people(there.enter_async_context(session(link, key=CYD)))
        people(cyd.ask_access("please"))
        (line,) = admin("waiting")
        assert "please" in line
        (line,) = admin("waiting", "--json")
        assert json.loads(line)["handle"] == "cyd"
        assert admin("grant", "cyd") == ["@cyd has access"]
        assert people(cyd.who_am_i()).account.access
        (line,) = admin("spaces")
        assert "Talk" in line
        first = people(ben.report(Category.SPAM, "noise", person="dan")).report
        second = people(ben.report(Category.HARASSMENT, "shouts", space=ada.link.space)).report
        lines = admin("reports")
        assert [line.split()[0] for line in lines] == [str(first), str(second)]
        assert "shouts" in lines[1]
        assert admin("act", first, "warn", "--note", "be kind") == [f"report {first}: warn"]
        (line,) = admin("reports", "--closed")
        assert "[warn, by " in line
        *_, line = admin("evidence", second)  # it opens on a moderator's device only
        assert line.startswith("Error: No such command 'evidence'")
        assert admin("ban", "dan", "--reason", "spam") == ["@dan is banned"]
        (line,) = admin("accounts", "--banned")
        assert "banned" in line
        assert admin("unban", "dan") == ["@dan is not banned any more"]
        reason = ("--reason", "against the rules")
        assert admin("close", ada.link.space, *reason) == ["the space is over"]
        assert "against the rules" in people(happens(ben, Ended)).text
        assert admin("spaces") == ["no space is live"]
        (line,) = admin("ban", "nobody")
        assert line.startswith("Error: ")
        assert admin("access", "open") == ["the server is open"]
        people(there.aclose())


def administered(data: Path, *words: object) -> list[str]:
    """What a command of administration prints, or its one line of error."""
    arguments = ["admin", *map(str, words), "--data", str(data)]
    result = CliRunner().invoke(main, arguments)
    assert isinstance(result.exception, SystemExit | None), result.exception  # no traceback
    assert (result.exit_code == 0) == (result.stderr == "")
    return result.output.splitlines()


def test_administration_without_a_server(tmp_path: Path) -> None:
    (error,) = administered(tmp_path / "none", "accounts")
    assert error.startswith("Error: no server has run with the data folder")
    assert not (tmp_path / "none").exists()
    with ServerCommand(tmp_path) as server:
        server.end(signal.SIGTERM)
    (error,) = administered(tmp_path / "data", "accounts")
    assert error.startswith("Error: nothing listens at 127.0.0.1:")
    (tmp_path / "data" / "operator.key").chmod(0o644)
    (error,) = administered(tmp_path / "data", "accounts")
    assert "run: chmod 600" in error
    (tmp_path / "data" / "link").write_text("nonsense")
    (error,) = administered(tmp_path / "data", "accounts")
    assert "a link starts with spaces://" in error


async def refuses(work: Awaitable[object], code: ErrorCode) -> None:
    with pytest.raises(SpacesError) as refusal:
        await work
    assert refusal.value.code == code
