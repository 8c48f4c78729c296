"""A client's side of the handshake: from a HELLO to the keys of a session.

Opening(...).hello ->
<- COOKIE               another Opening, with it: a HELLO is authenticated whole
<- WELCOME              answered(welcome): the keys, and the server's index
"""

from collections.abc import Callable

from protocol.frames import encode_greeting
from protocol.noise import Handshake, KeyPair
from protocol.packets import (
    HELLO_PAYLOAD_BYTES,
    INDEX_BYTES,
    NO_COOKIE,
    VERSION,
    Hello,
    Welcome,
    key_id,
)
from protocol.sealing import SessionKeys


class Opening:
    """One attempt.  hello: what is to be sent for it, and sent again until it is answered."""

    __slots__ = ("_handshake", "hello")

    def __init__(
        self,
        index: int,
        server_key: bytes,
        static: bytes | KeyPair,
        *,
        agent: str,
        entropy: Callable[[int], bytes],
        cookie: bytes = NO_COOKIE,
    ) -> None:
        """index: of this client, 32 bits, by which it knows what is for it.  server_key: the public
        one of the link.  static: the client's private key."""
        bare = Hello(VERSION, index, key_id(server_key), cookie, b"")
        self._handshake = Handshake(
            initiator=True,
            prologue=bare.prologue,
            entropy=entropy,
            static=static,
            remote_static=server_key,
        )
        noise = self._handshake.write(encode_greeting(agent, HELLO_PAYLOAD_BYTES))
        self.hello = Hello(VERSION, index, bare.key_id, cookie, noise)

    def answered(self, welcome: Welcome) -> tuple[SessionKeys, int]:
        """-> (the session's keys, the server's index).  Raises NoiseError: then this attempt is
        spent."""
        server_index = self._handshake.read(welcome.noise)[:INDEX_BYTES]
        send, receive = self._handshake.split()
        keys = SessionKeys.derive(send=send.key, receive=receive.key)
        return keys, int.from_bytes(server_index)
