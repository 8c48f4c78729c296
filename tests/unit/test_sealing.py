"""Keys that renew themselves, nonces that cannot repeat, and what a forger can change: nothing."""

import random
from dataclasses import astuple

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from protocol import replay, sealing
from protocol.packets import (
    COUNTER_LIMIT,
    HEADER_BYTES,
    TAG_BYTES,
    Kind,
    pack_header,
    unpack_header,
)
from protocol.replay import ReplayWindow
from protocol.sealing import Opener, Sealer, SealingExhaustedError, SessionKeys

SECRET = bytes(range(32))
INDEX = 0xCAFE_F00D
SHORT_BITS = 4
SHORT = 1 << SHORT_BITS  # packets an epoch, where the test makes epochs short


@pytest.fixture
def short_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "EPOCH_BITS", SHORT_BITS)
    monkeypatch.setattr(sealing, "EPOCH_PACKETS", SHORT)


class RecordingAead:
    """The real AES-GCM, and a note of what it was used for."""

    seals: list[tuple[bytes, bytes]]
    decrypts: int

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._aead = AESGCM(key)

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes:
        type(self).seals.append((self._key, nonce))
        return self._aead.encrypt(nonce, data, associated_data)

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes:
        type(self).decrypts += 1
        return self._aead.decrypt(nonce, data, associated_data)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> type[RecordingAead]:
    RecordingAead.seals, RecordingAead.decrypts = [], 0
    monkeypatch.setattr(sealing, "AESGCM", RecordingAead)
    return RecordingAead


def take(opener: Opener, datagram: bytes) -> bytes | None:
    """Open, then the replay window: as a connection does it."""
    _, counter, _ = unpack_header(datagram)
    plaintext = opener.open(datagram, counter)
    return plaintext if plaintext is not None and opener.fresh(counter) else None


def flipped(data: bytes, bit: int) -> bytes:
    out = bytearray(data)
    out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


# --- one packet ---


@given(plaintext=st.binary(max_size=1_172), kind=st.sampled_from([Kind.CONTROL, Kind.AUDIO]))
def test_what_is_sealed_opens(plaintext: bytes, kind: Kind) -> None:
    sealer, opener = Sealer(SECRET, INDEX), Opener(SECRET)
    for expected in range(3):
        datagram = sealer.seal(kind, plaintext)
        assert unpack_header(datagram) == (kind, expected, INDEX)
        assert len(datagram) == HEADER_BYTES + len(plaintext) + TAG_BYTES
        assert take(opener, datagram) == plaintext
        assert take(opener, datagram) is None, "a packet counts once"


def test_every_bit_of_a_datagram_is_protected_its_clear_header_too() -> None:
    datagram = Sealer(SECRET, INDEX).seal(Kind.AUDIO, b"opus")
    for bit in range(8 * len(datagram)):
        damaged = flipped(datagram, bit)
        assert Opener(SECRET).open(damaged, unpack_header(damaged)[1]) is None, f"bit {bit}"
    for size in range(len(datagram)):
        assert Opener(SECRET).open(datagram[:size], 0) is None
    assert Opener(SECRET).open(datagram + b"\0", 0) is None


def test_a_counter_other_than_that_of_the_header_is_no_way_in() -> None:
    # The key of epoch 1 does not open what the header says to be of epoch 0.
    datagram = Sealer(SECRET, INDEX).seal(Kind.AUDIO, b"opus")
    opener = Opener(SECRET)
    assert opener.open(datagram, sealing.EPOCH_PACKETS) is None
    assert opener.open(datagram, 0) == b"opus"


def test_control_and_media_and_both_directions_have_keys_of_their_own() -> None:
    here = SessionKeys.derive(send=b"a" * 32, receive=b"b" * 32)
    there = SessionKeys.derive(send=b"b" * 32, receive=b"a" * 32)
    assert here.send_control == there.receive_control
    assert here.send_media == there.receive_media
    assert there.send_control == here.receive_control
    assert there.send_media == here.receive_media
    secrets = astuple(here)
    assert len(set(secrets)) == 4
    assert not {b"a" * 32, b"b" * 32} & set(secrets)
    for sealed_with in secrets:
        datagram = Sealer(sealed_with, INDEX).seal(Kind.CONTROL, b"x")
        openers = [s for s in secrets if Opener(s).open(datagram, 0) is not None]
        assert openers == [sealed_with]


# --- renewal ---


@pytest.mark.usefixtures("short_epochs")
def test_keys_are_renewed_at_every_border_and_both_ends_agree(
    recorded: type[RecordingAead],
) -> None:
    sealer, opener = Sealer(SECRET, INDEX), Opener(SECRET)
    epochs = 5
    for i in range(epochs * SHORT):
        assert take(opener, sealer.seal(Kind.AUDIO, b"%d" % i)) == b"%d" % i
    used = [key for key, _ in recorded.seals]
    by_epoch = [used[i : i + SHORT] for i in range(0, len(used), SHORT)]
    assert [len(set(keys)) for keys in by_epoch] == [1] * epochs
    assert len(set(used)) == epochs


def test_the_border_is_at_a_power_of_two_below_the_limit_of_aes_gcm() -> None:
    assert sealing.EPOCH_PACKETS == 1 << sealing.EPOCH_BITS
    assert sealing.EPOCH_PACKETS < 1 << 23  # RFC 9001, appendix B
    sealer, opener = Sealer(SECRET, INDEX), Opener(SECRET)
    sealer.counter = sealing.EPOCH_PACKETS - 1
    assert take(opener, sealer.seal(Kind.AUDIO, b"last")) == b"last"
    first = sealer.key
    assert take(opener, sealer.seal(Kind.AUDIO, b"first")) == b"first"
    assert sealer.key != first


@pytest.mark.usefixtures("short_epochs")
def test_no_key_and_nonce_ever_repeat(recorded: type[RecordingAead]) -> None:
    keys = SessionKeys.derive(send=b"a" * 32, receive=b"b" * 32)
    sealers = [Sealer(secret, INDEX) for secret in astuple(keys)]
    rng = random.Random(1)
    for _ in range(12 * SHORT):
        rng.choice(sealers).seal(rng.choice([Kind.AUDIO, Kind.FEED, Kind.CONTROL]), b"x")
    assert len(recorded.seals) == 12 * SHORT
    assert len(set(recorded.seals)) == len(recorded.seals)
    # Stronger: not even the counter repeats under a key, whatever the kind and the index.
    pairs = {(key, nonce[1:8]) for key, nonce in recorded.seals}
    assert len(pairs) == len(recorded.seals)


@pytest.mark.usefixtures("short_epochs")
@given(seed=st.integers(0, 2**32), epochs=st.integers(1, 5))
def test_packets_overtake_each_other_across_a_border(seed: int, epochs: int) -> None:
    rng = random.Random(seed)
    sealer, opener = Sealer(SECRET, INDEX), Opener(SECRET)
    packets = [sealer.seal(Kind.AUDIO, bytes([i])) for i in range(epochs * SHORT)]
    # Each is late by less than an epoch.
    order = sorted(range(len(packets)), key=lambda i: i + rng.random() * (SHORT - 1))
    assert [take(opener, packets[i]) for i in order] == [bytes([i]) for i in order]
    assert [take(opener, packets[i]) for i in order] == [None] * len(order)


@pytest.mark.usefixtures("short_epochs")
def test_what_is_an_epoch_late_opens_and_what_is_two_epochs_late_does_not() -> None:
    sealer, opener = Sealer(SECRET, INDEX), Opener(SECRET)
    packets = [sealer.seal(Kind.AUDIO, b"x") for _ in range(3 * SHORT)]
    assert take(opener, packets[SHORT]) == b"x"
    assert take(opener, packets[0]) == b"x"  # epoch 0, seen from epoch 1
    assert take(opener, packets[2 * SHORT]) == b"x"
    assert take(opener, packets[SHORT + 1]) == b"x"
    assert take(opener, packets[1]) is None  # epoch 0, seen from epoch 2
    assert take(opener, packets[2 * SHORT + 1]) == b"x"


@pytest.mark.usefixtures("short_epochs")
def test_the_loss_of_nearly_two_epochs_is_survived() -> None:
    sealer, opener = Sealer(SECRET, INDEX), Opener(SECRET)
    packets = [sealer.seal(Kind.AUDIO, b"x") for _ in range(2 * SHORT)]
    assert take(opener, packets[0]) == b"x"
    assert take(opener, packets[2 * SHORT - 1]) == b"x"


@pytest.mark.usefixtures("short_epochs")
def test_a_forged_epoch_costs_at_most_one_tag_and_never_a_key(
    recorded: type[RecordingAead], monkeypatch: pytest.MonkeyPatch
) -> None:
    derived: list[bytes] = []

    def expand(secret: bytes, label: bytes, length_bytes: int) -> bytes:
        derived.append(label)
        return real_expand(secret, label, length_bytes)

    real_expand = sealing._expand
    monkeypatch.setattr(sealing, "_expand", expand)
    sealer, opener = Sealer(SECRET, INDEX), Opener(SECRET)
    for _ in range(SHORT + 3):
        assert take(opener, sealer.seal(Kind.AUDIO, b"x")) == b"x"
    keys, decrypts, highest = list(derived), recorded.decrypts, opener.replay.highest
    for epoch, tried in [(2, 1), (3, 0), (50, 0), ((COUNTER_LIMIT >> SHORT_BITS) - 1, 0)]:
        counter = epoch * SHORT
        forged = pack_header(Kind.AUDIO, counter, INDEX) + bytes(40)
        assert opener.open(forged, counter) is None
        assert recorded.decrypts - decrypts == tried, f"epoch {epoch}"
        decrypts = recorded.decrypts
    assert derived == keys, "no key was derived"
    assert opener.replay.highest == highest
    for _ in range(2 * SHORT):  # and the session goes on, into the next epochs
        assert take(opener, sealer.seal(Kind.AUDIO, b"x")) == b"x"


@pytest.mark.usefixtures("short_epochs")
def test_from_a_key_chain_no_way_leads_back() -> None:
    # What an opener holds when it is taken opens nothing that is two epochs old.
    sealer, opener = Sealer(SECRET, INDEX), Opener(SECRET)
    old = sealer.seal(Kind.AUDIO, b"old")
    for _ in range(3 * SHORT):
        take(opener, sealer.seal(Kind.AUDIO, b"x"))
    held = [key for key in opener._keys if key is not None]
    assert len(held) == 3
    for key in held:
        with pytest.raises(InvalidTag):
            AESGCM(key).decrypt(old[:HEADER_BYTES], old[HEADER_BYTES:], None)


# --- the end of the counters ---


def test_a_session_ends_before_its_counters_do() -> None:
    sealer = Sealer(SECRET, INDEX)
    window = ReplayWindow()
    sealer.counter = replay.COUNTER_LIMIT - 1
    last = sealer.seal(Kind.AUDIO, b"x")
    assert window.accept(unpack_header(last)[1]), "the last that is sealed is still taken"
    for _ in range(2):
        with pytest.raises(SealingExhaustedError):
            sealer.seal(Kind.AUDIO, b"x")
    assert not window.check(sealer.counter)
    assert sealer.counter == replay.COUNTER_LIMIT, "a refused packet takes no counter"
