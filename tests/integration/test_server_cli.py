"""`spaces-server run` as an operator meets it."""

import json
import os
import pty
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from protocol.keyfile import load_key
from protocol.link import Link
from protocol.noise import public_key
from spaces_client.client import Disconnected
from spaces_client.live import host
from spaces_server.cli import main
from tests.integration.processes import Command, ServerCommand


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
        async with host(server.link, title="Talk") as space:
            server.process.send_signal(signal.SIGTERM)
            texts = [e.text async for e in space.events() if isinstance(e, Disconnected)]
        assert texts == ["the server is shutting down"]
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
        link = Link.parse(server.line("spaces://"))
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
