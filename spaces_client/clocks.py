"""What a client and its server tell one another of their clocks (SPEC.md, sections 12.13, 12.14).

Asked while one speaks, or wants to know how late the others are: the server's clock, and how the
speakers' audio lies on it.  Told with the question: how one's own does.
"""

import math
from typing import Any, Final

from protocol import frames
from protocol.connection import MS
from protocol.frames import ErrorCode
from protocol.packets import DownlinkAudio
from protocol.profile import Profile
from spaces_client.alignment import Alignment
from spaces_client.delay import EXCHANGES, Ears, ServerClock, VoiceOrigin

ASK_NS: Final = 5_000 * MS  # between two questions,
ASK_FIRST_NS: Final = 200 * MS  # and until there are EXCHANGES answers


class Clocks:
    """server: the clock of this session's.  ears: how late what is heard is, if `measuring`.
    request_id: of the question that has no answer yet, or 0.  due_ns: when the next may be asked.
    """

    def __init__(self, profile: Profile) -> None:
        self.measuring = False
        self.request_id = 0
        self.due_ns: int | float = 0
        self._wanted = False
        self._asked_ns = 0
        self.sound_as(profile)
        self.session_begins()

    def session_begins(self) -> None:
        """Perhaps with another server, or the same one, started anew."""
        self.server = ServerClock()
        self._alignment.forget()
        self.due_ns = self.request_id = 0

    def sound_as(self, profile: Profile) -> None:
        """One's own frames, and those of the mix, from now on."""
        self.ears = Ears(profile)
        self._origin = VoiceOrigin()
        self._alignment = Alignment(profile.frame_samples)

    # -- one's own voice

    def captured(self, timestamp: int, at_ns: int) -> None:
        """at_ns: when the sample with this timestamp was captured, or a little later."""
        self._origin.captured(timestamp, at_ns)

    def sent(self, samples: int, *, timed: bool) -> None:
        """A frame of so many went out.  timed: whether it is known when it was captured."""
        self._wanted |= timed
        self._alignment.sent(samples)

    @property
    def later_samples(self) -> int:
        """By how much later the frames of the microphone are best to come."""
        return self._alignment.later_samples

    def moved(self) -> None:
        """They do."""
        self._alignment.moved()

    # -- the others'

    def came(self, audio: DownlinkAudio) -> None:
        if self.measuring:
            self.ears.came(audio)

    def played(self, timestamp: int, now_ns: int) -> None:
        """The sample of the mix with this timestamp goes out now."""
        if self.measuring:
            self.ears.played(timestamp, now_ns, self.server)

    # -- questions and answers

    def question(self, now_ns: int) -> dict[str, Any] | None:
        """-> the fields of `clock`, if that is to be asked now."""
        if not (self._wanted or self.measuring) or now_ns < self.due_ns:
            return None
        self.due_ns = now_ns + (ASK_NS if self.server.known == EXCHANGES else ASK_FIRST_NS)
        self._wanted = False
        if self.request_id:
            return None
        offset = self._origin.offset(self.server)
        return {} if offset is None else {"offset": offset}

    def asked(self, request_id: int, now_ns: int) -> None:
        self.request_id = request_id
        self._asked_ns = now_ns
        self._alignment.asked()

    def answered(self, clocks: frames.Clocks, now_ns: int) -> None:
        self.request_id = 0
        self._alignment.told(clocks.spare)
        self.server.answered(clocks.now, self._asked_ns, now_ns)
        self.ears.learn(clocks.voices)

    def refused(self, code: str) -> None:
        self.request_id = 0
        if code == ErrorCode.UNKNOWN_TYPE:  # an older server's
            self.due_ns = math.inf
