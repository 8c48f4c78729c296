"""Gets a libopus with deep PLC: Debian 13's, for any Linux with glibc 2.29 or newer.

    python -m protocol.get_libopus

What comes along with the Python packages is built without it. What it changes is in bench/README.md
(`jitter`); what it costs is in protocol/opus.py.
"""

import hashlib
import io
import os
import platform
import sys
import tarfile
import tempfile
import urllib.request
from pathlib import Path
from typing import Final

import click

from protocol.libopus import OpusError, find_library, load_library

# Of Debian 13, which keeps them for as long as it lives: by machine the architecture and SHA-256.
PACKAGE_URL: Final = "http://deb.debian.org/debian/pool/main/o/opus/libopus0_1.5.2-2_{}.deb"
PACKAGES: Final = {
    "x86_64": ("amd64", "794056db33d71b2ac4bd8b5a4eb23b627bcb8a49d123c33b6e841a996253a067"),
    "aarch64": ("arm64", "1d980e8a4717074805a98dbe07671cb3bee068c25709315f3de836980c629836"),
}
TIMEOUT_S: Final = 20.0


def _download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
        return bytes(answer.read())


def library_in(package: bytes) -> bytes:
    """The libopus.so in a Debian package: an `ar` archive (deb(5)), whose last member is a tar
    archive with the files. OpusError if there is none."""
    at = len(b"!<arch>\n")
    while at < len(package):
        name, size = package[at : at + 16], int(package[at + 48 : at + 58])
        at += 60  # the member's head
        if name.startswith(b"data.tar"):
            with tarfile.open(fileobj=io.BytesIO(package[at : at + size])) as files:
                for file in files:
                    if file.isfile() and "/libopus.so." in file.name:
                        content = files.extractfile(file)
                        assert content is not None
                        return content.read()
        at += size + size % 2
    raise OpusError("there is no libopus in that package")


def get() -> None:
    """Puts Debian's libopus with deep PLC into the virtual environment. OpusError."""
    if sys.prefix == sys.base_prefix:
        raise OpusError("this is for a virtual environment; elsewhere install libopus yourself")
    machine = platform.machine()
    if sys.platform != "linux" or machine not in PACKAGES:
        raise OpusError(f"Debian's libopus is for Linux on {' or '.join(PACKAGES)}")
    architecture, sha256 = PACKAGES[machine]
    url = PACKAGE_URL.format(architecture)
    try:
        package = _download(url)
    except OSError as error:
        raise OpusError(f"{url} cannot be had: {error}") from error
    if hashlib.sha256(package).hexdigest() != sha256:
        raise OpusError(f"{url} is not what it was: its SHA-256 is another one")
    folder = Path(sys.prefix, "lib")
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
        file.write(library_in(package))
    try:
        load_library(file.name, "environment")
        os.chmod(file.name, 0o644)
        os.replace(file.name, folder / "libopus.so.0")
    except (OSError, AttributeError) as error:
        os.unlink(file.name)
        raise OpusError(f"Debian's libopus cannot be used here: {error}") from error


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Put a libopus with deep PLC into this virtual environment, unless one is found already.

    What is lost of speech sounds better with it. It is Debian 13's, from deb.debian.org, for Linux
    with glibc 2.29 or newer.

    \b
    python -m protocol.get_libopus
    """
    try:
        if not find_library().deep_plc:
            get()
        library = find_library()
    except OpusError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"libopus {library}")


if __name__ == "__main__":
    main(prog_name="python -m protocol.get_libopus")
