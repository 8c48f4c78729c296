"""Earlier frames sent again, where frames are lost.

    Redundancy    what was reported lately (reception.py) -> a Remedy: how far back to reach, and
                  what an encoder is to do
    History       the last frames -> their copies for the newest one's packet
    Repeater      both, of a speaker, who has one receiver

The idea is RFC 2198's: the Opus bytes that were made already, so nothing is encoded twice and
nothing sounds worse where no frame is lost.  How far apart the copies are matters more than how
many there are: a burst takes neighbours together, and a copy in it is lost as well.
"""

from collections import deque
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from protocol.congestion import Congestion
from protocol.opus import Encoder
from protocol.packets import (
    CAPTURE_UNIT_SAMPLES,
    AudioFlag,
    Copies,
    Copy,
    DownlinkAudio,
    UplinkAudio,
)
from protocol.reception import Reception

NO_COPIES: Final[tuple[int, ...]] = ()
DEEPEST_SAMPLES: Final = 5_760  # 120 ms back: 6 frames of 20 ms, 12 of 10
# How many copies, from which loss on (a share of 1).
COPIES_FROM: Final = 0.004, 0.02, 0.1
FEC_FROM: Final = 0.08  # a share of 1
FEC_STEP_PERCENT: Final = 5  # what an encoder is to expect changes by so much
MOST_FEC_PERCENT: Final = 30
UP: Final = 0.25  # the weight of a report that is worse than those before it,
DOWN: Final = 0.06  # and of one that is better: copies stay for half a minute
BURST_MEMORY: Final = 0.97  # what is left of the bursts of a report at the next one
BURST_REACH: Final = 5  # frames back for each frame that bursts are longer than one


class Remedy(NamedTuple):
    """What a sender does about a path.

    copies: which earlier frames each packet carries again, counted back from its own.
    expected_loss_percent: what the encoder is to expect, in-band FEC included; 0 where copies do
    alone, because FEC takes from what frames sound like when they are not lost.  half_rate: the
    path is congested.
    """

    copies: tuple[int, ...] = NO_COPIES
    expected_loss_percent: int = 0
    half_rate: bool = False

    def apply(self, encoder: Encoder, bitrate: int) -> None:
        """bitrate: of the encoder, where nothing is wrong."""
        encoder.bitrate = bitrate // 2 if self.half_rate else bitrate
        encoder.fec = self.expected_loss_percent > 0
        encoder.expected_loss_percent = self.expected_loss_percent


NO_REMEDY: Final = Remedy()


class Redundancy:
    """What a sender does about the losses that its receiver reports.

    How far back copies reach is a matter of how long bursts are, and changes slowly: the receiver
    waits for them that long.  How many there are on the way is a matter of how much is lost.
    """

    __slots__ = ("_bursts", "_congestion", "_lost", "frame_samples", "loss")

    def __init__(self, frame_samples: int = 960) -> None:
        """frame_samples: of the packets that are sent, at 48 kHz; may change."""
        self.frame_samples = frame_samples
        self._congestion = Congestion()
        self.loss = 0.0  # a share of 1
        self._lost = self._bursts = 1.0  # as if there had been one that was as short as can be

    def report(self, reception: Reception) -> None:
        self._congestion.report(reception.queue_ms)
        loss = reception.lost / max(1, reception.expected)
        self.loss += (loss - self.loss) * (UP if loss > self.loss else DOWN)
        if reception.bursts:
            self._lost += reception.lost
            self._bursts += reception.bursts
            self._lost *= BURST_MEMORY
            self._bursts *= BURST_MEMORY

    @property
    def remedy(self) -> Remedy:
        """Copies would make a queue longer, so there are none where it is what loses packets."""
        congested = self._congestion.congested
        copies = NO_COPIES if congested else self._copies()
        return Remedy(copies, self._expected_loss_percent(), congested)

    def _copies(self) -> tuple[int, ...]:
        count = sum(self.loss >= least for least in COPIES_FROM)
        if not count:
            return NO_COPIES
        reach = 1 + round(BURST_REACH * (self._lost / self._bursts - 1))
        reach = min(max(reach, count), DEEPEST_SAMPLES // self.frame_samples)
        return tuple(reach * (n + 1) // count for n in range(count))

    def _expected_loss_percent(self) -> int:
        if self.loss < FEC_FROM:
            return 0
        steps = round(100 * self.loss / FEC_STEP_PERCENT)
        return min(steps * FEC_STEP_PERCENT, MOST_FEC_PERCENT)


@dataclass(frozen=True, slots=True)
class _Frame:
    timestamp: int
    flags: int
    opus: bytes


class History:
    """The last frames of a talkspurt that was sent, as far as copies reach; the newest at the
    end."""

    __slots__ = ("_frames",)

    def __init__(self) -> None:
        # Bounded whatever the timestamps are.
        most = 1 + DEEPEST_SAMPLES // CAPTURE_UNIT_SAMPLES
        self._frames: deque[_Frame] = deque(maxlen=most)

    def fork(self) -> "History":
        """Another one, with the same frames."""
        other = History()
        other._frames.extend(self._frames)
        return other

    def add(self, audio: UplinkAudio | DownlinkAudio) -> None:
        frames = self._frames
        if audio.flags & AudioFlag.FIRST:
            frames.clear()
        while frames and (audio.timestamp - frames[0].timestamp) % 2**32 > DEEPEST_SAMPLES:
            frames.popleft()
        frames.append(_Frame(audio.timestamp, audio.flags, audio.opus))

    def copies(self, offsets: tuple[int, ...]) -> Copies:
        """For the packet of the frame that was added last; the oldest first."""
        frames = self._frames
        made = []
        for offset in reversed(offsets):
            if offset < len(frames):
                frame = frames[-1 - offset]
                back = (frames[-1].timestamp - frame.timestamp) % 2**32 // CAPTURE_UNIT_SAMPLES
                if back > 0:
                    made.append(Copy(back, frame.flags & AudioFlag.FIRST, frame.opus))
        return tuple(made)


class Repeater:
    """A speaker's end: what was sent lately, and what was reported of it."""

    __slots__ = ("_history", "redundancy")

    def __init__(self, frame_samples: int = 960) -> None:
        self.redundancy = Redundancy(frame_samples)
        self._history = History()

    def repeat(self, audio: UplinkAudio) -> UplinkAudio:
        """The next packet, with the copies that it is to carry."""
        self._history.add(audio)
        return replace(audio, copies=self._history.copies(self.redundancy.remedy.copies))
