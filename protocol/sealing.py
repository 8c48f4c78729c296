"""Keys of a session and the sealing of its datagrams.

Noise gives one 32-byte secret a direction.  From each come two key chains, one for control and
one for media (audio and feed), so that a packet of one can never be taken for the other and each
has counters of its own.  A chain is a ratchet: *the counter of a packet says which key seals it*
(`epoch = counter >> 20`), so keys are renewed without a message, a state or a clock, long before
AES-GCM's limit of 2**23 packets a key (RFC 9001, appendix B), and an old key cannot be computed
from a newer one.

The 12-byte clear header is the nonce.  Its counter never repeats under a key, and a header that
was tampered with is a wrong nonce, so the tag fails: the header needs no place in the AAD.
AES-128: as strong as the X25519 exchange above it, and the cheapest seal a listener can have.

An AEAD is an OpenSSL context: 2.5 KB, made in 1.4 µs from a key of 16 bytes.  So keys are kept,
and an AEAD is made for each datagram; only the server's egress, which seals all that a listener
hears, keeps more than the key.
"""

from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocol.hkdf import expand
from protocol.packets import HEADER_BYTES, TAG_BYTES, pack_header
from protocol.replay import COUNTER_LIMIT, ReplayWindow

EPOCH_BITS = 20
EPOCH_PACKETS = 1 << EPOCH_BITS
_KEY_BYTES = 16


class SealingExhaustedError(Exception):
    """The counters of a session are used up; a new handshake is needed."""


def _expand(secret: bytes, label: bytes, length_bytes: int) -> bytes:
    return expand(secret, b"spaces 1 " + label, length_bytes)


def _key(secret: bytes) -> bytes:
    return _expand(secret, b"key", _KEY_BYTES)


def _next_epoch(secret: bytes) -> tuple[bytes, bytes]:
    """-> the secret and the key of the epoch after the one whose secret this is.  There is no way
    back: whoever calls it forgets the secret."""
    following = _expand(secret, b"next", 32)
    return following, _key(following)


class Sealer:
    """Seals what goes out under one chain.  The server's egress table seals many rows at once:
    it takes over `counter` and `key`, and asks `renew()` for the key of every next epoch."""

    __slots__ = ("_secret", "counter", "index", "key")

    def __init__(self, secret: bytes, index: int) -> None:
        """index: the receiver's session index, written into every header."""
        self._secret = secret
        self.key = _key(secret)  # of the present epoch
        self.index = index
        self.counter = 0

    def renew(self) -> bytes:
        """-> the key of the next epoch, the present one from now on."""
        self._secret, self.key = _next_epoch(self._secret)
        return self.key

    def seal(self, kind: int, plaintext: bytes) -> bytes:
        """-> the whole datagram.  Raises SealingExhaustedError at the end of the counters."""
        counter = self.counter
        if counter >= COUNTER_LIMIT:  # no receiver would take it
            raise SealingExhaustedError("no counter is left in this session")
        if counter and counter % EPOCH_PACKETS == 0:
            self.renew()
        header = pack_header(kind, counter, self.index)
        self.counter = counter + 1
        return header + AESGCM(self.key).encrypt(header, plaintext, None)


class Opener:
    """Opens what comes in under one chain: open, *then* the replay window.

    Holds the keys of three epochs: the one before (for packets that were overtaken), the present
    one and the next, so that a forged counter costs one failed tag and never a derivation.
    """

    __slots__ = ("_epoch", "_keys", "_secret", "replay")

    def __init__(self, secret: bytes) -> None:
        present = _key(secret)
        self._secret, following = _next_epoch(secret)
        self._epoch = 0
        self._keys: tuple[bytes | None, bytes, bytes] = (None, present, following)
        self.replay = ReplayWindow()

    def open(self, datagram: bytes, counter: int) -> bytes | None:
        """-> plaintext, or None if it is forged, damaged, or of an epoch out of reach.
        The caller then asks `fresh(counter)`."""
        step = (counter >> EPOCH_BITS) - self._epoch
        key = self._keys[step + 1] if -1 <= step <= 1 else None
        if key is None or len(datagram) < HEADER_BYTES + TAG_BYTES:
            return None
        try:
            plaintext = AESGCM(key).decrypt(datagram[:HEADER_BYTES], datagram[HEADER_BYTES:], None)
        except InvalidTag:
            return None
        if step == 1:
            _, before, present = self._keys
            self._secret, following = _next_epoch(self._secret)
            self._keys = (before, present, following)
            self._epoch += 1
        return plaintext

    def fresh(self, counter: int) -> bool:
        """False if a packet with this counter was here before, or it is older than the window."""
        return self.replay.accept(counter)


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """The four secrets of one end of a session, 32 bytes each."""

    send_control: bytes
    send_media: bytes
    receive_control: bytes
    receive_media: bytes

    @classmethod
    def derive(cls, send: bytes, receive: bytes) -> "SessionKeys":
        """send, receive: the two keys of Noise's split, as this end sees them."""
        return cls(
            send_control=_expand(send, b"control", 32),
            send_media=_expand(send, b"media", 32),
            receive_control=_expand(receive, b"control", 32),
            receive_media=_expand(receive, b"media", 32),
        )
