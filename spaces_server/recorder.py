"""The last 30 s of every speaker, in memory only, for the evidence that goes with a report."""

from collections import deque

KEPT_NS = 30_000_000_000
MAX_PACKETS = 3_100  # 30 s of the shortest packets that are taken, 10 ms, and some
MAX_MEMBERS = 64  # of whom something is kept: more than any stage holds


class Recorder:
    """Packets of one space, by member; older ones than KEPT_NS are forgotten as new ones come,
    and those of somebody who is silent when `forget` is called."""

    def __init__(self) -> None:
        self._packets: dict[int, deque[tuple[int, int, bytes]]] = {}

    def take(self, member: int, timestamp: int, opus: bytes, now_ns: int) -> None:
        packets = self._packets.get(member)
        if packets is None:
            packets = self._packets[member] = deque()
            if len(self._packets) > MAX_MEMBERS:  # somebody comes and goes on stage all the time
                del self._packets[next(iter(self._packets))]
        packets.append((now_ns, timestamp, opus))
        while packets[0][0] < now_ns - KEPT_NS:
            packets.popleft()

    def full(self, member: int, now_ns: int) -> bool:
        """Whether somebody has sent more than can be played in the time.  What comes then must not
        be heard either: it would push out what they said before."""
        packets = self._packets.get(member)
        if packets is None or len(packets) < MAX_PACKETS:
            return False
        return packets[0][0] >= now_ns - KEPT_NS

    def recording(self, member: int, now_ns: int) -> list[tuple[int, bytes]]:
        """-> (timestamp, Opus packet), in the order in which they came."""
        return [
            (timestamp, opus)
            for at_ns, timestamp, opus in self._packets.get(member, ())
            if at_ns >= now_ns - KEPT_NS
        ]

    def forget(self, now_ns: int) -> None:
        for member, packets in list(self._packets.items()):
            if packets[-1][0] < now_ns - KEPT_NS:
                del self._packets[member]
