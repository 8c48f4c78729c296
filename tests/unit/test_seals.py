"""Seals: whatever seals the egress's rows, OpenSSL opens it, and nothing else is touched."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.packets import HEADER_BYTES, MAX_PLAINTEXT_BYTES, TAG_BYTES
from spaces_server.mixer import ipsec_mb
from spaces_server.mixer.ipsec_mb import BURST_JOBS, OVERRIDE, IpsecMbError, IpsecMbSeals
from spaces_server.mixer.seals import Seals, best_seals
from tests.unit.seals_of import INTEL, KINDS, library, new_seals

UNTOUCHED = 0xA5


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == INTEL:
        library()
    return str(request.param)


@pytest.fixture
def seals(kind: str) -> Seals:
    made = new_seals(kind)
    made.grow(8)
    return made


@pytest.fixture
def find_anew() -> Iterator[None]:
    """What is found is remembered for good otherwise."""
    ipsec_mb.find.cache_clear()
    yield
    ipsec_mb.find.cache_clear()


def key() -> bytes:
    return os.urandom(16)


def sealed(seals: Seals, rows: list[int], plaintext: bytes, spare: int = 0) -> list[bytes]:
    """-> what each row's bytes are then; those that are no datagram's must be as before."""
    size = HEADER_BYTES + len(plaintext) + TAG_BYTES
    out = np.full((len(rows), size + spare), UNTOUCHED, np.uint8)
    for row in out:
        row[:HEADER_BYTES] = np.frombuffer(os.urandom(HEADER_BYTES), np.uint8)
    nonces = [row[:HEADER_BYTES].tobytes() for row in out]
    seals.seal(np.array(rows, np.intp), plaintext, out)
    assert [row[:HEADER_BYTES].tobytes() for row in out] == nonces
    assert (out[:, size:] == UNTOUCHED).all()
    return [row[:size].tobytes() for row in out]


def opens(datagram: bytes, key: bytes) -> bytes:
    """Raises InvalidTag."""
    return AESGCM(key).decrypt(datagram[:HEADER_BYTES], datagram[HEADER_BYTES:], None)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 4 * BURST_JOBS), st.integers(0, 200), st.sampled_from([0, 1, 63, 64])
        ),
        min_size=1,
        max_size=4,
    )
)
def test_every_row_opens_with_its_own_key(kind: str, ticks: list[tuple[int, int, int]]) -> None:
    """However many rows there are at a time, in whatever order, and however long it is."""
    seals = new_seals(kind)
    keys: list[bytes] = []
    for count, size, spare in ticks:
        if count > len(keys):
            seals.grow(count)
            for row in range(len(keys), count):
                keys.append(key())
                seals.set(row, keys[row])
        rows = np.random.default_rng(count).permutation(len(keys))[:count].tolist()
        plaintext = os.urandom(size)
        for row, datagram in zip(rows, sealed(seals, rows, plaintext, spare), strict=True):
            assert opens(datagram, keys[row]) == plaintext


def test_the_longest_and_the_shortest(seals: Seals) -> None:
    one = key()
    seals.set(3, one)
    for size in (0, 1, 15, 16, 17, MAX_PLAINTEXT_BYTES):
        plaintext = os.urandom(size)
        (datagram,) = sealed(seals, [3], plaintext)
        assert opens(datagram, one) == plaintext


def test_a_row_many_times_in_one_job(seals: Seals) -> None:
    one = key()
    seals.set(0, one)
    for datagram in sealed(seals, [0] * (BURST_JOBS + 1), b"again"):
        assert opens(datagram, one) == b"again"


def test_a_new_key_counts_from_then_on(seals: Seals) -> None:
    first, second = key(), key()
    seals.set(1, first)
    (before,) = sealed(seals, [1], b"before")
    seals.set(1, second)
    (after,) = sealed(seals, [1], b"after")
    assert opens(before, first) == b"before"
    assert opens(after, second) == b"after"


def test_keys_outlast_growth(seals: Seals) -> None:
    keys = [key() for _ in range(8)]
    for row, one in enumerate(keys):
        seals.set(row, one)
    for rows in (9, 64, 5_000):
        seals.grow(rows)
        seals.set(rows - 1, keys[0])
        for row, datagram in zip(range(8), sealed(seals, list(range(8)), b"x"), strict=True):
            assert opens(datagram, keys[row]) == b"x"
        (datagram,) = sealed(seals, [rows - 1], b"y")
        assert opens(datagram, keys[0]) == b"y"


def test_nothing_is_sealed_without_a_key(seals: Seals) -> None:
    seals.set(0, key())
    seals.set(1, key())
    seals.clear(1)
    for row in (1, 2):
        with pytest.raises((IpsecMbError, TypeError)):
            sealed(seals, [0, row], b"to nobody")
    assert len(sealed(seals, [0], b"to somebody")) == 1


def test_a_key_of_another_length_is_refused(kind: str) -> None:
    made = new_seals(kind)
    made.grow(1)
    for size in (0, 15, 17, 33):
        with pytest.raises(ValueError, match="key"):
            made.set(0, bytes(size))


# --- Intel's library ---


def keys_of(seals: IpsecMbSeals) -> int:
    """How many bytes of keys there are that are not zero."""
    return sum(int(np.count_nonzero(block)) for block in seals._blocks)


def test_a_key_that_is_cleared_is_gone() -> None:
    seals = IpsecMbSeals(library())
    seals.grow(4)
    assert keys_of(seals) == 0
    seals.set(2, key())
    assert keys_of(seals) > 200, "the key, and what is made of it"
    seals.clear(2)
    assert keys_of(seals) == 0


@pytest.mark.parametrize(
    ("rows", "shape"), [(2, (3, 64)), (2, (1, 64)), (2, (2, HEADER_BYTES + TAG_BYTES + 4))]
)
def test_nothing_is_written_where_there_is_no_room(rows: int, shape: tuple[int, int]) -> None:
    seals = IpsecMbSeals(library())
    seals.grow(2)
    for row in range(2):
        seals.set(row, key())
    out = np.zeros(shape, np.uint8)
    with pytest.raises(ValueError, match="rows of 5 bytes"):
        seals.seal(np.arange(rows), b"hello", out)
    with pytest.raises(ValueError, match="contiguous"):
        seals.seal(np.arange(2), b"hello", np.zeros((2, 128), np.uint8)[:, ::2])
    with pytest.raises(IndexError):
        seals.seal(np.array([2]), b"hello", np.zeros((1, 64), np.uint8))
    assert not out.any()


def test_its_memory_goes_with_it() -> None:
    found = library()
    freed = []

    class Functions:
        def __getattr__(self, name: str) -> Any:
            return freed.append if name == "free_mb_mgr" else getattr(found.functions, name)

    functions: Any = Functions()  # the library's own, but for the one that is counted
    seals = IpsecMbSeals(ipsec_mb.Library(functions, found.version))
    manager = seals._manager
    assert freed == []
    del seals
    assert freed == [manager]
    found.functions.free_mb_mgr(manager)


def test_it_is_the_best_where_it_is() -> None:
    assert best_seals().name == f"intel-ipsec-mb {library().version}"


@pytest.mark.usefixtures("find_anew")
def test_an_empty_override_means_openssl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OVERRIDE, "")
    assert best_seals().name == "OpenSSL"


@pytest.mark.usefixtures("find_anew")
@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/nowhere/libIPSec_MB.so", "SPACES_IPSEC_MB=/nowhere/libIPSec_MB.so cannot be loaded"),
        ("libc.so.6", "libc.so.6 is not Intel's multi-buffer library"),
    ],
)
def test_an_override_that_is_no_such_library_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str, said: str
) -> None:
    monkeypatch.setenv(OVERRIDE, path)
    assert best_seals().name == "OpenSSL"
    assert said in caplog.text


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("VERSIONS", range(0), "which is not known here"),
        ("_HASH_GMAC", 0, "is not used: it did not seal"),
        ("AESGCM", lambda key: AESGCM(key[::-1]), "seals otherwise than OpenSSL"),
    ],
)
def test_a_library_that_does_not_do_what_it_should_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    find_anew: None,
    name: str,
    value: Any,
    said: str,
) -> None:
    """It is of another version, refuses its jobs, or seals otherwise."""
    library()
    ipsec_mb.find.cache_clear()
    monkeypatch.setattr(ipsec_mb, name, value)
    assert best_seals().name == "OpenSSL"
    assert said in caplog.text


def test_a_burst_that_fails_is_an_error_and_the_next_one_works() -> None:
    seals = IpsecMbSeals(library())
    seals.grow(2 * BURST_JOBS)
    one = key()
    for row in range(2 * BURST_JOBS - 1):
        seals.set(row, one)
    out = np.zeros((2 * BURST_JOBS, 64), np.uint8)
    with pytest.raises(IpsecMbError, match="did not seal"):
        seals.seal(np.arange(2 * BURST_JOBS), b"x", out)  # the last row has no key
    assert out[:BURST_JOBS, HEADER_BYTES:].any(axis=1).all()
    assert not out[BURST_JOBS:].any(), "nothing of a burst with a bad job"
    for datagram in sealed(seals, [0] * (BURST_JOBS + 1), b"again"):
        assert opens(datagram, one) == b"again"
