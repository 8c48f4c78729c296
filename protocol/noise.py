"""Noise: a handshake is a list of tokens, and this module interprets it.

The Noise Protocol Framework, revision 34 (https://noiseprotocol.org/noise.html). A `Pattern` and a
`Cipher` are data. The product uses one of each, Noise_IK_25519_AESGCM_SHA256: the client knows the
server's key beforehand (it is in the link) and sends its own, encrypted, in its first message.

All keys are raw, 32 bytes. X25519 and AES-GCM come from `cryptography`; only the order in which
they are called is written here. A responder's IK costs five multiplications on the curve (its
ephemeral key, es, ss, ee, se), and a server does that for everyone who comes: nothing beside them
is computed twice, and no key is loaded twice.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocol.hkdf import extract_and_expand

KEY_BYTES = 32
TAG_BYTES = 16
MAX_MESSAGE_BYTES = 65_535
MAX_NONCE = 2**64 - 2  # 2**64 - 1 is reserved by the framework (section 5.1)


class NoiseError(Exception):
    """A message that must not be trusted, or a handshake used out of order."""


class Aead(Protocol):
    """A keyed AEAD, as `cryptography` shapes them: the tag comes last in the ciphertext."""

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None, /) -> bytes: ...
    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Cipher:
    """An AEAD by its Noise name, and how a 64-bit counter becomes its 12-byte nonce."""

    name: str
    aead: Callable[[bytes], Aead]
    nonce: Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Pattern:
    """A handshake pattern (sections 7 and 9): whose keys are known before, what each message does.

    `pre_messages` holds the tokens of the initiator and of the responder. Rows of `messages`
    alternate, the initiator's first. Tokens: "e", "s", "ee", "es", "se", "ss", "psk".
    """

    name: str
    pre_messages: tuple[tuple[str, ...], tuple[str, ...]]
    messages: tuple[tuple[str, ...], ...]


AESGCM_CIPHER = Cipher("AESGCM", AESGCM, lambda n: bytes(4) + n.to_bytes(8, "big"))

IK = Pattern(
    "IK",
    pre_messages=((), ("s",)),
    messages=(("e", "es", "s", "ss"), ("e", "ee", "se")),
)


class KeyPair:
    """An X25519 private key, loaded, and its public key. ValueError if it has not 32 bytes.

    To load it is a multiplication too: a server does so once, not for each handshake.
    """

    __slots__ = ("_private", "public")

    def __init__(self, private: bytes) -> None:
        self._private = X25519PrivateKey.from_private_bytes(private)
        self.public: bytes = self._private.public_key().public_bytes_raw()

    def exchange(self, remote: X25519PublicKey) -> bytes:
        """The secret (32 bytes) shared with the owner of a public key. ValueError if that is of
        low order: the secret would be zero, whoever owns it."""
        return self._private.exchange(remote)


def public_key(private: bytes) -> bytes:
    """The X25519 public key (32 bytes) of a private one. ValueError if that has another length."""
    return KeyPair(private).public


class CipherState:
    """One direction's key and its counter (section 5.1). Without a key, text passes unchanged."""

    __slots__ = ("_aead", "_cipher", "_n", "key")

    def __init__(self, cipher: Cipher, key: bytes = b"") -> None:
        self.key = key
        self._cipher = cipher
        self._aead: Aead | None = None  # made at first use: not every key is used
        self._n = 0

    def encrypt(self, ad: bytes, plaintext: bytes) -> bytes:
        if not self.key:
            return plaintext
        ciphertext = self._keyed().encrypt(self._nonce(), plaintext, ad)
        self._n += 1
        return ciphertext

    def decrypt(self, ad: bytes, ciphertext: bytes) -> bytes:
        """NoiseError if the text is not authentic; the counter then stays where it is."""
        if not self.key:
            return ciphertext
        try:
            plaintext = self._keyed().decrypt(self._nonce(), ciphertext, ad)
        except InvalidTag as error:
            raise NoiseError("not authentic") from error
        self._n += 1
        return plaintext

    def _keyed(self) -> Aead:
        if self._aead is None:
            self._aead = self._cipher.aead(self.key)
        return self._aead

    def _nonce(self) -> bytes:
        if self._n > MAX_NONCE:
            raise NoiseError("nonces used up")
        return self._cipher.nonce(self._n)


class _SymmetricState:
    """The chaining key and the running hash of all that both sides have seen (section 5.2)."""

    __slots__ = ("_chaining_key", "_cipher", "_state", "hash")

    def __init__(self, protocol_name: bytes, cipher: Cipher) -> None:
        if len(protocol_name) <= hashlib.sha256().digest_size:
            self.hash = protocol_name.ljust(hashlib.sha256().digest_size, b"\0")
        else:
            self.hash = hashlib.sha256(protocol_name).digest()
        self._chaining_key = self.hash
        self._cipher = cipher
        self._state = CipherState(cipher)

    @property
    def tag_bytes(self) -> int:
        """What encryption adds to a text now: nothing before the first key."""
        return TAG_BYTES if self._state.key else 0

    def mix_hash(self, data: bytes) -> None:
        self.hash = hashlib.sha256(self.hash + data).digest()

    def mix_key(self, ikm: bytes) -> None:
        self._chaining_key, key = extract_and_expand(self._chaining_key, ikm, 2)
        self._state = CipherState(self._cipher, key)

    def mix_key_and_hash(self, ikm: bytes) -> None:
        self._chaining_key, digest, key = extract_and_expand(self._chaining_key, ikm, 3)
        self.mix_hash(digest)
        self._state = CipherState(self._cipher, key)

    def encrypt(self, plaintext: bytes) -> bytes:
        ciphertext = self._state.encrypt(self.hash, plaintext)
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt(self, ciphertext: bytes) -> bytes:
        plaintext = self._state.decrypt(self.hash, ciphertext)
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[CipherState, CipherState]:
        first, second = extract_and_expand(self._chaining_key, b"", 2)
        return CipherState(self._cipher, first), CipherState(self._cipher, second)


class Handshake:
    """One side of a handshake: `write` and `read` in turn, until `complete`, then `split`.

    `entropy(32)` gives the ephemeral private key. `static` is our private key (a `KeyPair` if it
    is used more than once), `remote_static` the peer's public one: each is needed exactly where
    the pattern says so, as is one of `psks` (32 bytes) for each psk token, in order. ValueError if
    these do not fit the pattern.

    NoiseError on anything wrong in a message or its turn: the handshake is then dead, and a new
    one has to be begun.
    """

    def __init__(
        self,
        *,
        initiator: bool,
        prologue: bytes,
        entropy: Callable[[int], bytes],
        static: KeyPair | bytes | None,
        remote_static: bytes | None = None,
        pattern: Pattern = IK,
        cipher: Cipher = AESGCM_CIPHER,
        psks: Sequence[bytes] = (),
    ) -> None:
        ours = 0 if initiator else 1
        theirs = 1 - ours
        sends_static = any("s" in row for row in pattern.messages[ours::2])
        if static is None and (sends_static or "s" in pattern.pre_messages[ours]):
            raise ValueError(f"{pattern.name} needs our static key")
        if (remote_static is not None) != ("s" in pattern.pre_messages[theirs]):
            raise ValueError(f"{pattern.name}: remote static key missing, or not known beforehand")
        psk_count = sum(row.count("psk") for row in pattern.messages)
        if [len(psk) for psk in psks] != [KEY_BYTES] * psk_count:
            raise ValueError(f"{pattern.name} needs {psk_count} psks of {KEY_BYTES} bytes")

        self._initiator = initiator
        self._entropy = entropy
        self._rows = pattern.messages
        self._row = 0
        self._dead = False
        self._psks = iter(psks)
        self._psk_mode = psk_count > 0
        # Keys by the letter that stands for them in the tokens.
        self._local: dict[str, KeyPair] = {}
        self._remote: dict[str, X25519PublicKey] = {}
        if static is not None:
            self._local["s"] = KeyPair(static) if isinstance(static, bytes) else static
        if remote_static is not None:
            self._remote["s"] = X25519PublicKey.from_public_bytes(remote_static)

        self._symmetric = _SymmetricState(
            f"Noise_{pattern.name}_25519_{cipher.name}_SHA256".encode(), cipher
        )
        self._symmetric.mix_hash(prologue)
        for side, tokens in enumerate(pattern.pre_messages):
            for token in tokens:
                key = self._local[token].public if side == ours else self.remote_static
                self._symmetric.mix_hash(key)

    @property
    def complete(self) -> bool:
        return self._row == len(self._rows) and not self._dead

    @property
    def remote_static(self) -> bytes:
        """The peer's public key (32 bytes). NoiseError while it is unknown."""
        if "s" not in self._remote:
            raise NoiseError("the peer's static key is not known yet")
        return self._remote["s"].public_bytes_raw()

    @property
    def hash(self) -> bytes:
        """The handshake hash h (32 bytes): when complete, it names this one session (11.2)."""
        return self._symmetric.hash

    def write(self, payload: bytes) -> bytes:
        """The next message to send."""
        tokens = self._begin(ours=True)
        message = b""
        for token in tokens:
            if token == "e":
                self._local["e"] = KeyPair(self._entropy(KEY_BYTES))
                self._mix_ephemeral(self._local["e"].public)
                message += self._local["e"].public
            elif token == "s":
                message += self._symmetric.encrypt(self._local["s"].public)
            else:
                self._mix_secret(token)
        message += self._symmetric.encrypt(payload)
        if len(message) > MAX_MESSAGE_BYTES:
            raise NoiseError("message too long")
        self._end()
        return message

    def read(self, message: bytes) -> bytes:
        """The payload of the peer's next message."""
        tokens = self._begin(ours=False)
        if len(message) > MAX_MESSAGE_BYTES:
            raise NoiseError("message too long")
        position = 0

        def take(size: int) -> bytes:
            nonlocal position
            if len(message) - position < size:
                raise NoiseError("message too short")
            position += size
            return message[position - size : position]

        for token in tokens:
            if token == "e":
                ephemeral = take(KEY_BYTES)
                self._remote["e"] = X25519PublicKey.from_public_bytes(ephemeral)
                self._mix_ephemeral(ephemeral)
            elif token == "s":
                static = self._symmetric.decrypt(take(KEY_BYTES + self._symmetric.tag_bytes))
                self._remote["s"] = X25519PublicKey.from_public_bytes(static)
            else:
                self._mix_secret(token)
        payload = self._symmetric.decrypt(message[position:])
        self._end()
        return payload

    def split(self) -> tuple[CipherState, CipherState]:
        """The transport ciphers: initiator to responder, then responder to initiator."""
        if not self.complete:
            raise NoiseError("the handshake is not complete")
        return self._symmetric.split()

    def _begin(self, *, ours: bool) -> tuple[str, ...]:
        # Dead until the message's end: whatever is raised on the way leaves it so.
        was_dead, self._dead = self._dead, True
        if was_dead:
            raise NoiseError("the handshake has failed before")
        if self._row == len(self._rows):
            raise NoiseError("the handshake is over")
        if ours != (self._initiator == (self._row % 2 == 0)):
            raise NoiseError("out of turn")
        return self._rows[self._row]

    def _end(self) -> None:
        self._row += 1
        self._dead = False

    def _mix_ephemeral(self, ephemeral: bytes) -> None:
        self._symmetric.mix_hash(ephemeral)
        if self._psk_mode:  # a psk alone would repeat keys: the ephemeral randomises them (9.2)
            self._symmetric.mix_key(ephemeral)

    def _mix_secret(self, token: str) -> None:
        if token == "psk":
            self._symmetric.mix_key_and_hash(next(self._psks))
            return
        # The first letter is the initiator's key, the second the responder's.
        ours, theirs = (0, 1) if self._initiator else (1, 0)
        try:
            secret = self._local[token[ours]].exchange(self._remote[token[theirs]])
        except ValueError as error:  # the result would be all zero: a low-order public key
            raise NoiseError("worthless public key") from error
        self._symmetric.mix_key(secret)
