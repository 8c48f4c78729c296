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
"""

from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from protocol.packets import HEADER_BYTES, TAG_BYTES, pack_header
from protocol.replay import COUNTER_LIMIT, ReplayWindow

EPOCH_BITS = 20
EPOCH_PACKETS = 1 << EPOCH_BITS
_KEY_BYTES = 16


class SealingExhaustedError(Exception):
    """The counters of a session are used up; a new handshake is needed."""


def _expand(secret: bytes, label: str, length_bytes: int) -> bytes:
    return HKDFExpand(SHA256(), length_bytes, b"spaces 1 " + label.encode()).derive(secret)


class _KeyChain:
    """Gives the AEAD of an epoch, forward only."""

    __slots__ = ("_epoch", "_secret")

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._epoch = 0

    def next(self) -> AESGCM:
        """The AEAD of the next epoch (the first call: epoch 0); its secret is forgotten."""
        aead = AESGCM(_expand(self._secret, "key", _KEY_BYTES))
        self._secret = _expand(self._secret, "next", 32)
        self._epoch += 1
        return aead


class Sealer:
    """Seals what goes out under one chain.  The server's egress table seals many rows at once:
    it takes over `counter` and asks `renew()` for the AEAD whenever an epoch begins."""

    __slots__ = ("_chain", "aead", "counter", "index")

    def __init__(self, secret: bytes, index: int) -> None:
        """index: the receiver's session index, written into every header."""
        self._chain = _KeyChain(secret)
        self.aead = self._chain.next()
        self.index = index
        self.counter = 0

    def renew(self) -> AESGCM:
        self.aead = self._chain.next()
        return self.aead

    def seal(self, kind: int, plaintext: bytes) -> bytes:
        """-> the whole datagram.  Raises SealingExhaustedError at the end of the counters."""
        counter = self.counter
        if counter >= COUNTER_LIMIT:  # no receiver would take it
            raise SealingExhaustedError("no counter is left in this session")
        if counter and counter % EPOCH_PACKETS == 0:
            self.renew()
        header = pack_header(kind, counter, self.index)
        self.counter = counter + 1
        return header + self.aead.encrypt(header, plaintext, None)


class Opener:
    """Opens what comes in under one chain: open, *then* the replay window.

    Holds the keys of three epochs: the one before (for packets that were overtaken), the present
    one and the next, so that a forged counter costs one failed tag and never a derivation.
    """

    __slots__ = ("_chain", "_epoch", "_keys", "replay")

    def __init__(self, secret: bytes) -> None:
        self._chain = _KeyChain(secret)
        self._epoch = 0
        self._keys: list[AESGCM | None] = [None, self._chain.next(), self._chain.next()]
        self.replay = ReplayWindow()

    def open(self, datagram: bytes, counter: int) -> bytes | None:
        """-> plaintext, or None if it is forged, damaged, or of an epoch out of reach.
        The caller then asks `fresh(counter)`."""
        step = (counter >> EPOCH_BITS) - self._epoch
        aead = self._keys[step + 1] if -1 <= step <= 1 else None
        if aead is None or len(datagram) < HEADER_BYTES + TAG_BYTES:
            return None
        try:
            plaintext = aead.decrypt(datagram[:HEADER_BYTES], datagram[HEADER_BYTES:], None)
        except InvalidTag:
            return None
        if step == 1:
            self._epoch += 1
            self._keys = [self._keys[1], self._keys[2], self._chain.next()]
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
            send_control=_expand(send, "control", 32),
            send_media=_expand(send, "media", 32),
            receive_control=_expand(receive, "control", 32),
            receive_media=_expand(receive, "media", 32),
        )
