"""Noise against published vectors of three implementations, and against tampering."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from protocol.noise import (
    AESGCM_CIPHER,
    IK,
    KEY_BYTES,
    Cipher,
    CipherState,
    Handshake,
    NoiseError,
    Pattern,
    public_key,
)

VECTORS = Path(__file__).resolve().parents[2] / ".." / "shared" / "vectors" / "noise_vectors.json"

PATTERNS = {
    pattern.name: pattern
    for pattern in (
        IK,
        Pattern("NK", ((), ("s",)), (("e", "es"), ("e", "ee"))),
        Pattern("XX", ((), ()), (("e",), ("e", "ee", "s", "es"), ("s", "se"))),
        Pattern("NKpsk0", ((), ("s",)), (("psk", "e", "es"), ("e", "ee"))),
        Pattern("NKpsk2", ((), ("s",)), (("e", "es"), ("e", "ee", "psk"))),
        Pattern("XXpsk3", ((), ()), (("e",), ("e", "ee", "s", "es"), ("s", "se", "psk"))),
        Pattern("IKpsk1", ((), ("s",)), (("e", "es", "s", "ss", "psk"), ("e", "ee", "se"))),
        Pattern("IKpsk2", ((), ("s",)), (("e", "es", "s", "ss"), ("e", "ee", "se", "psk"))),
    )
}
CIPHERS = {
    cipher.name: cipher
    for cipher in (
        AESGCM_CIPHER,
        Cipher("ChaChaPoly", ChaCha20Poly1305, lambda n: bytes(4) + n.to_bytes(8, "little")),
    )
}


# --- published vectors ---


def load_vectors() -> list[dict[str, Any]]:
    if not VECTORS.exists():
        return []
    vectors: list[dict[str, Any]] = json.loads(VECTORS.read_text())["vectors"]
    return vectors


def unhex(vector: dict[str, Any], *names: str) -> bytes | None:
    """The first of these fields that is there: the sources name the same things differently."""
    for name in names:
        if name in vector:
            return bytes.fromhex(vector[name])
    return None


def handshake_of(vector: dict[str, Any], side: str) -> Handshake:
    _, pattern, _, cipher, _ = vector["protocol_name"].split("_")
    fields = vector | vector.get("raw", {})
    ephemeral = unhex(fields, f"{side}_ephemeral", f"gen_{side}_ephemeral")
    remote_static = unhex(fields, f"{side}_remote_static")
    responder_static = unhex(fields, "resp_static")
    if side == "init" and "s" in PATTERNS[pattern].pre_messages[1] and remote_static is None:
        assert responder_static is not None
        remote_static = public_key(responder_static)
    psks = [bytes.fromhex(psk) for psk in fields.get(f"{side}_psks", [])]
    if shared := unhex(fields, "preshared_key"):
        psks = [shared]

    def entropy(size: int) -> bytes:
        assert ephemeral is not None
        assert size == len(ephemeral)
        return ephemeral

    return Handshake(
        initiator=side == "init",
        prologue=unhex(fields, f"{side}_prologue", "prologue") or b"",
        entropy=entropy,
        static=unhex(fields, f"{side}_static"),
        remote_static=remote_static,
        pattern=PATTERNS[pattern],
        cipher=CIPHERS[cipher],
        psks=psks,
    )


@pytest.mark.shared
@pytest.mark.skipif(not VECTORS.exists(), reason="no Noise vectors beside the project (../shared)")
def test_the_vectors_are_all_there() -> None:
    vectors = load_vectors()
    assert len(vectors) == 86
    names = {vector["protocol_name"] for vector in vectors}
    assert names == {f"Noise_{p}_25519_{c}_SHA256" for p in PATTERNS for c in CIPHERS}
    assert sum("handshake_hash" in vector for vector in vectors) == 16


@pytest.mark.shared
@pytest.mark.skipif(not VECTORS.exists(), reason="no Noise vectors beside the project (../shared)")
@pytest.mark.parametrize(
    "vector",
    load_vectors(),
    ids=lambda v: f"{v['protocol_name']}-{v['source'].split('/')[0]}",
)
def test_vector(vector: dict[str, Any]) -> None:
    initiator, responder = handshake_of(vector, "init"), handshake_of(vector, "resp")
    messages = [
        (bytes.fromhex(m["payload"]), bytes.fromhex(m["ciphertext"])) for m in vector["messages"]
    ]
    rounds = len(PATTERNS[vector["protocol_name"].split("_")[1]].messages)
    assert len(messages) > rounds + 1, "both directions of the transport are covered"

    for i, (payload, ciphertext) in enumerate(messages[:rounds]):
        assert not initiator.complete
        sender, receiver = (initiator, responder) if i % 2 == 0 else (responder, initiator)
        assert sender.write(payload) == ciphertext
        assert receiver.read(ciphertext) == payload

    assert initiator.complete
    assert responder.complete
    assert initiator.hash == responder.hash
    if "handshake_hash" in vector:
        assert initiator.hash.hex() == vector["handshake_hash"]

    senders, receivers = initiator.split(), responder.split()
    # Directions alternate over all messages, but for one source, where the initiator's comes first.
    first = 0 if vector["source"].startswith("flynn") else rounds
    for i, (payload, ciphertext) in enumerate(messages[rounds:], start=first):
        assert senders[i % 2].encrypt(b"", payload) == ciphertext
        assert receivers[i % 2].decrypt(b"", ciphertext) == payload


# --- on its own: IK as the product uses it ---

SERVER = bytes(range(32))
CLIENT = bytes(range(100, 132))
PROLOGUE = b"spaces test"
PAYLOADS = (b"hello", b"welcome")
Entropy = Callable[[int], bytes]


def fixed(seed: int) -> Entropy:
    return lambda size: bytes([seed]) * size


CLIENT_ENTROPY = fixed(7)


def client(
    *,
    server_key: bytes = public_key(SERVER),
    prologue: bytes = PROLOGUE,
    entropy: Entropy = CLIENT_ENTROPY,
) -> Handshake:
    return Handshake(
        initiator=True,
        prologue=prologue,
        entropy=entropy,
        static=CLIENT,
        remote_static=server_key,
    )


def server(*, prologue: bytes = PROLOGUE) -> Handshake:
    return Handshake(initiator=False, prologue=prologue, entropy=fixed(9), static=SERVER)


def exchange() -> tuple[bytes, bytes]:
    """Both messages of one handshake."""
    initiator, responder = client(), server()
    first = initiator.write(PAYLOADS[0])
    responder.read(first)
    return first, responder.write(PAYLOADS[1])


def test_round_trip_and_keys_agree() -> None:
    initiator, responder = client(entropy=os.urandom), server()
    assert responder.read(initiator.write(PAYLOADS[0])) == PAYLOADS[0]
    assert responder.remote_static == public_key(CLIENT)
    assert initiator.read(responder.write(PAYLOADS[1])) == PAYLOADS[1]
    assert initiator.remote_static == public_key(SERVER)
    assert initiator.complete
    assert responder.complete
    assert initiator.hash == responder.hash

    up, down = initiator.split()
    up_there, down_there = responder.split()
    assert up.key == up_there.key
    assert down.key == down_there.key
    assert up.key != down.key
    for text in (b"one", b"two", b""):
        assert up_there.decrypt(b"ad", up.encrypt(b"ad", text)) == text
        assert down.decrypt(b"", down_there.encrypt(b"", text)) == text


def test_same_text_is_never_sealed_alike() -> None:
    up = CipherState(AESGCM_CIPHER, bytes(KEY_BYTES))
    assert up.encrypt(b"", b"text") != up.encrypt(b"", b"text")


def test_a_forgery_does_not_move_the_counter() -> None:
    sender, receiver = (CipherState(AESGCM_CIPHER, bytes(KEY_BYTES)) for _ in range(2))
    sealed = sender.encrypt(b"ad", b"text")
    for ad, text in ((b"other", sealed), (b"ad", sealed[:-1]), (b"ad", b"")):
        with pytest.raises(NoiseError):
            receiver.decrypt(ad, text)
    assert receiver.decrypt(b"ad", sealed) == b"text"


def test_ephemeral_keys_come_from_entropy() -> None:
    assert client(entropy=fixed(1)).write(b"")[:32] == public_key(bytes([1]) * 32)
    assert client(entropy=os.urandom).write(b"") != client(entropy=os.urandom).write(b"")


def test_wrong_server_key_is_rejected_by_the_server() -> None:
    first = client(server_key=public_key(bytes([55]) * 32)).write(b"")
    with pytest.raises(NoiseError):
        server().read(first)


def test_an_impostor_cannot_answer() -> None:
    initiator = client()
    first = initiator.write(b"")
    responder = server()
    responder.read(first)
    impostor = Handshake(initiator=False, prologue=PROLOGUE, entropy=fixed(9), static=b"\x37" * 32)
    with pytest.raises(NoiseError):
        impostor.read(first)
    with pytest.raises(NoiseError):
        impostor.write(b"")
    with pytest.raises(NoiseError):
        initiator.read(exchange_with_other_client())


def exchange_with_other_client() -> bytes:
    """The server's genuine answer, but to another first message."""
    responder = server()
    responder.read(client(entropy=fixed(8)).write(b""))
    return responder.write(b"")


def test_another_prologue_is_rejected() -> None:
    with pytest.raises(NoiseError):
        server(prologue=b"other").read(client().write(b""))


def test_every_single_bit_counts() -> None:
    first, second = exchange()
    assert server().read(first) == PAYLOADS[0]
    for bit in range(len(first) * 8):
        with pytest.raises(NoiseError):
            server().read(flipped(first, bit))
    for bit in range(len(second) * 8):
        initiator = client()
        assert initiator.write(PAYLOADS[0]) == first
        with pytest.raises(NoiseError):
            initiator.read(flipped(second, bit))


def flipped(message: bytes, bit: int) -> bytes:
    changed = bytearray(message)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_other_length_is_rejected() -> None:
    first, second = exchange()
    lengthened = (first + b"\0", first + bytes(70_000))
    for message in (*(first[:n] for n in range(len(first))), *lengthened):
        with pytest.raises(NoiseError):
            server().read(message)
    for message in (*(second[:n] for n in range(len(second))), second + b"\0"):
        initiator = client()
        initiator.write(PAYLOADS[0])
        with pytest.raises(NoiseError):
            initiator.read(message)


@pytest.mark.parametrize(
    "worthless",
    [bytes(32), bytes([1]) + bytes(31), (2**255 - 20).to_bytes(32, "little")],
    ids=["zero", "one", "minus one"],
)
def test_low_order_public_keys_are_rejected(worthless: bytes) -> None:
    first, second = exchange()
    with pytest.raises(NoiseError, match="worthless"):
        server().read(worthless + first[32:])
    initiator = client()
    initiator.write(PAYLOADS[0])
    with pytest.raises(NoiseError, match="worthless"):
        initiator.read(worthless + second[32:])
    with pytest.raises(NoiseError, match="worthless"):
        client(server_key=worthless).write(b"")


def test_out_of_turn() -> None:
    first, _ = exchange()
    with pytest.raises(NoiseError, match="turn"):
        client().read(first)
    with pytest.raises(NoiseError, match="turn"):
        server().write(b"")
    initiator = client()
    initiator.write(b"")
    with pytest.raises(NoiseError, match="turn"):
        initiator.write(b"")


def test_an_error_is_final() -> None:
    first, _ = exchange()
    responder = server()
    with pytest.raises(NoiseError):
        responder.read(first[:-1])
    with pytest.raises(NoiseError, match="failed before"):
        responder.read(first)
    with pytest.raises(NoiseError, match="failed before"):
        responder.write(b"")
    assert not responder.complete


def test_nothing_before_it_is_known_and_nothing_after_the_end() -> None:
    initiator, responder = client(), server()
    with pytest.raises(NoiseError):
        responder.remote_static  # noqa: B018 (reading it is the test)
    with pytest.raises(NoiseError):
        responder.split()
    responder.read(initiator.write(b""))
    with pytest.raises(NoiseError):
        initiator.split()
    initiator.read(responder.write(b""))
    with pytest.raises(NoiseError, match="over"):
        initiator.write(b"")


def test_too_long_a_payload() -> None:
    room = 65_535 - 32 - 48 - 16
    first = client().write(bytes(room))
    assert len(first) == 65_535
    assert server().read(first) == bytes(room)
    with pytest.raises(NoiseError, match="long"):
        client().write(bytes(room + 1))


def test_keys_have_to_fit_the_pattern() -> None:
    def build(**changes: Any) -> Handshake:
        arguments: dict[str, Any] = {
            "initiator": True,
            "prologue": b"",
            "entropy": fixed(1),
            "static": CLIENT,
            "remote_static": public_key(SERVER),
        }
        return Handshake(**(arguments | changes))

    build()
    for changes in (
        {"static": None},
        {"static": b"short"},
        {"remote_static": None},
        {"remote_static": b"short"},
        {"initiator": False},  # the responder learns the key from the message
        {"initiator": False, "static": None, "remote_static": None},
        {"psks": [bytes(32)]},
        {"pattern": PATTERNS["IKpsk2"]},
        {"pattern": PATTERNS["IKpsk2"], "psks": [bytes(31)]},
    ):
        with pytest.raises(ValueError, match=r"."):
            build(**changes)


def test_nonces_are_not_reused_at_the_end() -> None:
    state = CipherState(AESGCM_CIPHER, bytes(KEY_BYTES))
    state._n = 2**64 - 2
    state.encrypt(b"", b"the last")
    with pytest.raises(NoiseError, match="nonces"):
        state.encrypt(b"", b"one too many")
