"""Links and key files: what a person types or copies is taken whole, or refused in one line."""

import os
import stat
from ipaddress import IPv6Address
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.keyfile import KeyFileError, load_key
from protocol.link import DEFAULT_PORT, Link, LinkError, decode_key, encode_key

KEY = bytes(range(32))
GOOD = encode_key(KEY)
WORD = "ABCXYZabcxyz0189_-"

hosts = (
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]{2,5}){0,2}", fullmatch=True)
    | st.ip_addresses(v=4).map(str)
    | st.ip_addresses(v=6).map(str)
)
links = st.builds(
    Link,
    host=hosts,
    port=st.integers(1, 65_535),
    key=st.binary(min_size=32, max_size=32),
    space=st.none() | st.text(WORD, min_size=1, max_size=32),
    invite=st.none() | st.text(WORD, min_size=1, max_size=64),
)


@given(link=links)
@example(link=Link("::1", 5004, KEY, "lobby", "let-me-in"))
@example(link=Link("2001:db8::7", 1, bytes(32)))
def test_a_link_is_printed_and_read_back(link: Link) -> None:
    text = str(link)
    assert text.isascii()
    assert not set(text) & set(" \n\t\"'")
    assert Link.parse(text) == link
    assert Link.parse(f"  {text}\n") == link, "as it is pasted"


def test_a_link_looks_as_documented() -> None:
    assert str(Link("host.example", 5004, KEY, "Lobby_1", "tok-en")) == (
        f"spaces://host.example:5004/Lobby_1?key={GOOD}&invite=tok-en"
    )
    assert str(Link("::1", 5004, KEY)) == f"spaces://[::1]:5004/?key={GOOD}"
    assert Link.parse(f"spaces://[::1]?key={GOOD}") == Link("::1", DEFAULT_PORT, KEY)
    assert Link.parse(f"spaces://host?key={GOOD}").space is None


@given(address=st.ip_addresses(v=6))
def test_an_ipv6_address_stands_in_brackets(address: IPv6Address) -> None:
    text = str(Link(str(address), 7, KEY))
    assert text.startswith(f"spaces://[{address}]:7/")
    assert IPv6Address(Link.parse(text).host) == address


BAD = {
    "": "spaces://",
    "lobby": "spaces://",
    f"http://host/?key={GOOD}": "spaces://",
    f"spaces:host?key={GOOD}": "host",
    f"spaces:///lobby?key={GOOD}": "host",
    "spaces://host:5004/lobby": "key",
    "spaces://host/?key=": "key",
    "spaces://host/?key=short": "base64url",
    "spaces://host/?key=c2hvcnQ": "5 bytes",
    f"spaces://host/?key={GOOD}AAAA": "bytes",
    f"spaces://host/?key={GOOD[:-2]}*!": "base64url",
    f"spaces://host/?key={GOOD[:-2]}é": "base64url",
    f"spaces://host:0/?key={GOOD}": "port",
    f"spaces://host:65536/?key={GOOD}": "ort",
    f"spaces://host:five/?key={GOOD}": "ort",
    f"spaces://host:-1/?key={GOOD}": "ort",
    f"spaces://[::1/?key={GOOD}": "read",
    f"spaces://host/a%20b?key={GOOD}": "space",
    f"spaces://host/a/b?key={GOOD}": "space",
    f"spaces://host/{'x' * 33}?key={GOOD}": "space",
    f"spaces://host/lobby%0A?key={GOOD}": "space",
    f"spaces://host/lobby?key={GOOD}&invite=a%0Ab": "invite",
    f"spaces://host/lobby?key={GOOD}&invite={'x' * 65}": "invite",
}


@pytest.mark.parametrize(("text", "word"), BAD.items(), ids=range(len(BAD)))
def test_a_bad_link_is_refused_with_one_clear_line(text: str, word: str) -> None:
    with pytest.raises(LinkError) as caught:
        Link.parse(text)
    line = str(caught.value)
    assert word in line
    assert "\n" not in line
    assert len(line) < 200


@given(
    text=st.text(max_size=80)
    | st.text(max_size=60).map("spaces://".__add__)
    | st.text(max_size=40).map(lambda t: f"spaces://{t}?key={GOOD}")
    | st.text(max_size=40).map(lambda t: f"spaces://host/{t}?key={GOOD}")
    | st.text(max_size=40).map(lambda t: f"spaces://host/lobby?key={t}")
)
def test_whatever_is_typed_gives_a_link_or_one_line(text: str) -> None:
    try:
        link = Link.parse(text)
    except LinkError as error:
        line = str(error)
    else:
        assert len(link.key) == 32
        assert 0 < link.port <= 65_535
        assert link.host
        return
    assert len(line.splitlines()) == 1


@given(text=st.text(max_size=60))
def test_a_key_is_read_from_its_own_text_only(text: str) -> None:
    try:
        key = decode_key(text)
    except LinkError:
        return
    assert len(key) == 32
    assert decode_key(encode_key(key)) == key


def test_an_old_looking_link_from_a_damaged_mail_is_no_other_link() -> None:
    # A character lost anywhere in the key: never a key of the wrong length, or a shorter one.
    text = str(Link("host", 5004, KEY, "lobby"))
    at = text.index(GOOD)
    for i in range(len(GOOD)):
        with pytest.raises(LinkError):
            Link.parse(text[: at + i] + text[at + i + 1 :])


# --- key files ---


def test_a_key_is_made_once_with_its_folder_and_then_read(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "key"
    key, made = load_key(path)
    assert made
    assert len(key) == 32
    assert load_key(path) == (key, False)
    assert path.read_text() == encode_key(key) + "\n"
    assert load_key(tmp_path / "other")[0] != key


def test_the_key_comes_from_the_entropy_that_is_handed_in(tmp_path: Path) -> None:
    asked: list[int] = []

    def entropy(size: int) -> bytes:
        asked.append(size)
        return KEY

    assert load_key(tmp_path / "key", entropy) == (KEY, True)
    assert load_key(tmp_path / "key", entropy) == (KEY, False)
    assert asked == [32]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_nobody_else_can_read_the_key_and_one_that_others_can_read_is_refused(
    tmp_path: Path,
) -> None:
    path = tmp_path / "folder" / "key"
    load_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for mode in (0o604, 0o640, 0o666):
        path.chmod(mode)
        with pytest.raises(KeyFileError, match="chmod 600") as caught:
            load_key(path)
        assert "\n" not in str(caught.value)
    path.chmod(0o600)
    assert load_key(path)[1] is False


@pytest.mark.parametrize("text", [b"", b"\n", b"junk\n", b"\xff\xfe", GOOD[:-3].encode()])
def test_a_damaged_key_is_refused_and_left_as_it_is(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(text)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="damaged") as caught:
        load_key(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert path.read_bytes() == text


def test_a_path_that_cannot_be_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir(mode=0o700)
    for path in (tmp_path / "file" / "key", tmp_path / "folder"):
        with pytest.raises(KeyFileError, match="cannot be used") as caught:
            load_key(path)
        assert len(str(caught.value).splitlines()) == 1


def test_of_two_who_make_a_key_at_once_the_first_wins(tmp_path: Path) -> None:
    path = tmp_path / "key"

    def meanwhile(size_bytes: int) -> bytes:
        assert load_key(path, lambda _: KEY) == (KEY, True)
        return bytes(size_bytes)

    assert load_key(path, meanwhile) == (KEY, False)
    assert [found.name for found in tmp_path.iterdir()] == ["key"]
