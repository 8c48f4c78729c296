"""How a server is set up: one option is one field here, one flag, one variable, one TOML key."""

import re
import socket
import tomllib
from pathlib import Path

import click


class ConfigError(Exception):
    """The server cannot start like this; one line that says what to do."""


def read_toml(path: Path) -> dict[str, str]:
    """The options of a TOML file: its keys are the flags' names, with `-` or `_`, and its values
    mean what the same text means behind the flag.  Raises ConfigError."""
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for name, value in values.items():
        if isinstance(value, dict | list):
            raise ConfigError(f"{path}: {name}: an option takes one value, no table or list")
    return {name.replace("-", "_"): str(value) for name, value in values.items()}


def check_public_host(host: str) -> str:
    """What goes into the links.  Raises ConfigError."""
    if not re.fullmatch(r"[\w.:-]+", host):
        raise ConfigError(f"{host!r} is no name or address of a host, such as rooms.example.org")
    return host


def guess_public_host(bound: str) -> str:
    """What goes into the link where the operator has not said it: an address of this machine."""
    if bound not in ("", "::", "0.0.0.0"):
        return bound
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
    except OSError:
        found = []
    addresses = [str(info[4][0]) for info in found]
    return next((a for a in addresses if not a.startswith("127.")), "127.0.0.1")


data_option = click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="SPACES_DATA",
    default=lambda: Path(click.get_app_dir("spaces-server")),
    show_default="your user's folder for application data",
    help="Folder of the server's keys and of its database; made on the first start.",
)
