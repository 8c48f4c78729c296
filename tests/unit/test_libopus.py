"""Which libopus is used, and how one with deep PLC is got."""

import ctypes
import ctypes.util
import hashlib
import io
import os
import platform
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from protocol import get_libopus, libopus
from protocol.libopus import Library, OpusError, find_library, load_library
from protocol.opus import DEEP_PLC_COMPLEXITY, LIBRARY, Decoder, Encoder

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = libopus._bundled_path() or ""  # of a package that every environment has
SHOW = "from protocol import opus; print(opus.LIBRARY.origin, opus.LIBRARY.path)"


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# -- which


def offer(monkeypatch: pytest.MonkeyPatch, **found: tuple[tuple[int, ...], bool]) -> None:
    """Where a libopus is found: its version, and whether it has deep PLC."""
    monkeypatch.delenv("SPACES_LIBOPUS", raising=False)

    def load(path: str, origin: str) -> tuple[tuple[int, ...], Library]:
        order, deep_plc = found[origin]
        if not order:
            raise OSError("built for another machine")
        return order, Library(path, ".".join(map(str, order)), origin, deep_plc)

    def path(origin: str) -> str | None:
        return f"/{origin}" if origin in found else None

    monkeypatch.setattr(libopus, "load_library", load)
    monkeypatch.setattr(libopus, "_environment_path", lambda: path("environment"))
    monkeypatch.setattr(libopus, "_bundled_path", lambda: path("bundled"))
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: path("system"))


def test_the_newest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, system=((1, 3, 1), False), bundled=((1, 6), False))
    assert find_library().origin == "bundled"
    offer(monkeypatch, system=((1, 6, 1), False), bundled=((1, 6), False))
    assert find_library().origin == "system"


def test_one_with_deep_plc_is_taken_before_a_newer_one_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offer(monkeypatch, system=((1, 5, 2), True), bundled=((1, 6), False))
    assert find_library() == Library("/system", "1.5.2", "system", deep_plc=True)
    offer(monkeypatch, environment=((1, 5, 2), True), system=((1, 6, 1), True))
    assert find_library().origin == "system"


def test_one_that_cannot_be_loaded_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, environment=((), True), bundled=((1, 6), False))
    assert find_library().origin == "bundled"


def test_no_library_at_all_is_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offer(monkeypatch)
    with pytest.raises(OpusError, match=r"no usable libopus.*SPACES_LIBOPUS"):
        find_library()


def test_the_override_wins_outright() -> None:
    result = run_python(SHOW, SPACES_LIBOPUS=LIBRARY.path)
    assert result.stdout.split() == ["override", LIBRARY.path]


@pytest.mark.parametrize("path", ["/nowhere/libopus.so", str(Path(__file__))])
def test_an_unusable_override_is_an_error_that_names_it(path: str) -> None:
    result = run_python(SHOW, SPACES_LIBOPUS=path)
    assert result.returncode != 0
    assert f"OpusError: SPACES_LIBOPUS={path}" in result.stderr


def test_opuslib_is_bound_to_the_library_reported() -> None:
    result = run_python(
        "import ctypes.util as u; f = u.find_library; from protocol import opus;"
        "import opuslib.api; print(opuslib.api.lib_location == opus.LIBRARY.path,"
        " u.find_library is f)"
    )
    assert result.stdout.split() == ["True", "True"]


def test_what_is_said_of_deep_plc_is_what_the_library_does() -> None:
    tone = 0.3 * np.sin(2 * np.pi * 300 * np.arange(48_000) / 48_000).astype(np.float32)
    encoder = Encoder()
    packets = [encoder.encode(frame) for frame in tone.reshape(-1, 960)]
    concealed = []
    for complexity, plainly in ((DEEP_PLC_COMPLEXITY, False), (DEEP_PLC_COMPLEXITY, True), (0, 0)):
        decoder, out = Decoder(complexity=complexity), np.zeros(960, np.float32)
        for packet in packets:
            decoder.decode(packet, out)
        decoder.conceal(out, plainly=bool(plainly))
        concealed.append(out.tobytes())
    deeply, plainly_made, plain = concealed
    assert (deeply != plain) is LIBRARY.deep_plc
    assert plainly_made == plain
    assert ("deep PLC" in str(LIBRARY)) is LIBRARY.deep_plc


# -- getting one


def debian_package(**files: bytes) -> bytes:
    """An `ar` archive with a tar archive of files, as deb(5) has it; names with / as _."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:xz") as data:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./usr/lib/{name.replace('_', '/')}.so.0.10.1")
            member.size = len(content)
            data.addfile(member, io.BytesIO(content))
    package = b"!<arch>\n"
    for name, content in (
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", b"odd"),  # so a byte is left out after it
        ("data.tar.xz", archive.getvalue()),
    ):
        head = f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n"
        package += head.encode() + content + b"\n" * (len(content) % 2)
    return package


def test_the_library_is_found_in_a_package() -> None:
    package = debian_package(any_libother=b"other", any_libopus=b"opus")
    assert get_libopus.library_in(package) == b"opus"
    with pytest.raises(OpusError, match="no libopus"):
        get_libopus.library_in(debian_package(any_libother=b"other"))


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A virtual environment, on a machine that Debian knows, in which nothing has deep PLC."""
    offer(monkeypatch, bundled=((1, 6), False))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    (tmp_path / "lib").mkdir()
    return tmp_path / "lib"


def serve(monkeypatch: pytest.MonkeyPatch, package: bytes, *, known: bool = True) -> None:
    digest = hashlib.sha256(package).hexdigest() if known else "0" * 64
    monkeypatch.setattr(get_libopus, "PACKAGES", {"x86_64": ("amd64", digest)})
    monkeypatch.setattr(get_libopus, "_download", lambda url: package)


def test_what_was_got_can_be_loaded_by_everybody(
    monkeypatch: pytest.MonkeyPatch, environment: Path
) -> None:
    serve(monkeypatch, debian_package(any_libopus=Path(BUNDLED).read_bytes()))
    get_libopus.get()
    (got,) = environment.iterdir()
    assert got.name == "libopus.so.0"
    assert got.stat().st_mode & 0o777 == 0o644
    assert load_library(str(got), "environment")[0] == load_library(BUNDLED, "bundled")[0]


@pytest.mark.parametrize("content", [b"no library at all", b""])
def test_nothing_is_left_of_one_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, environment: Path, content: bytes
) -> None:
    serve(monkeypatch, debian_package(any_libopus=content))
    with pytest.raises(OpusError, match="cannot be used here"):
        get_libopus.get()
    assert not list(environment.iterdir())


def test_another_package_is_not_taken(monkeypatch: pytest.MonkeyPatch, environment: Path) -> None:
    serve(monkeypatch, debian_package(any_libopus=b"opus"), known=False)
    result = CliRunner().invoke(get_libopus.main)
    assert result.exit_code == 1
    assert "its SHA-256 is another one" in result.output
    assert not list(environment.iterdir())


def test_what_cannot_be_had_is_said(monkeypatch: pytest.MonkeyPatch, environment: Path) -> None:
    def unreachable(url: str) -> bytes:
        raise OSError("no route")

    monkeypatch.setattr(get_libopus, "_download", unreachable)
    result = CliRunner().invoke(get_libopus.main)
    assert result.exit_code == 1
    assert "libopus0_1.5.2-2_amd64.deb cannot be had: no route" in result.output


def test_it_is_for_virtual_environments_on_machines_that_debian_knows(
    monkeypatch: pytest.MonkeyPatch, environment: Path
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "s390x")
    with pytest.raises(OpusError, match="x86_64 or aarch64"):
        get_libopus.get()
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    with pytest.raises(OpusError, match="virtual environment"):
        get_libopus.get()


def test_nothing_is_got_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, system=((1, 5, 2), True), bundled=((1, 6), False))
    monkeypatch.setattr(get_libopus, "_download", pytest.fail)
    result = CliRunner().invoke(get_libopus.main)
    assert result.output == "libopus 1.5.2 (system, deep PLC)\n"
