"""What a client and its server tell one another of their clocks: when, and how long it holds."""

import math

from protocol import frames
from protocol.connection import MS
from protocol.frames import ErrorCode
from protocol.profile import VOICE
from spaces_client.alignment import KEPT_SAMPLES
from spaces_client.clocks import ASK_FIRST_NS, Clocks


def speak(clocks: Clocks) -> None:
    """For 400 ms."""
    for block in range(20):
        clocks.captured((block + 1) * 960, (block + 1) * 20 * MS)
        clocks.sent(960, timed=True)


def answered() -> Clocks:
    clocks = Clocks(VOICE)
    speak(clocks)
    assert clocks.question(400 * MS) == {}
    clocks.asked(7, 400 * MS)
    clocks.answered(frames.Clocks(re=7, now=12_345, voices=[], spare=700), 410 * MS)
    return clocks


def test_whoever_is_silent_and_does_not_measure_asks_nothing() -> None:
    assert Clocks(VOICE).question(400 * MS) is None


def test_whoever_speaks_asks_and_then_tells_how_their_audio_lies() -> None:
    clocks = answered()
    assert clocks.later_samples == 700 - KEPT_SAMPLES
    speak(clocks)
    assert clocks.question(400 * MS + ASK_FIRST_NS - 1) is None, "not so soon"
    question = clocks.question(400 * MS + ASK_FIRST_NS)
    assert question is not None
    assert "offset" in question


def test_another_session_knows_nothing_of_the_server_before() -> None:
    clocks = answered()
    clocks.session_begins()
    assert clocks.server.known == clocks.later_samples == clocks.request_id == 0
    speak(clocks)
    assert clocks.question(420 * MS) == {}


def test_a_server_without_a_clock_is_not_asked_again() -> None:
    clocks = Clocks(VOICE)
    clocks.measuring = True
    assert clocks.question(0) == {}
    clocks.asked(7, 0)
    clocks.refused(ErrorCode.UNKNOWN_TYPE)
    assert clocks.due_ns == math.inf
    assert clocks.question(10**15) is None
