"""What is said in a space without a voice: who wrote which line of chat, and the reactions that are
merged until the feed tells of them.  Nothing of it is stored; texts are in the feed alone."""

from collections import deque

from protocol.frames import ErrorCode, Reaction, ReactionsUpdate
from spaces_server.policy.effects import RefusedError

MAX_LINES = 1_000  # that can be taken back
MAX_WRITERS = 20_000  # whose last line is remembered, for slow mode
LINES_A_SECOND = 20  # of all together: more can neither be read nor told to thousands
MAX_SHOWN = 16  # by name, in one update: with the longest emoji, it fits into one datagram
SECOND_NS = 1_000_000_000


class Chat:
    """The lines of chat, by number, and their authors' accounts."""

    def __init__(self) -> None:
        self._last = 0
        self._authors: dict[int, int] = {}
        self._written_ns: dict[int, int] = {}  # account -> when its last line was, oldest first
        self._newest_ns: deque[int] = deque(maxlen=LINES_A_SECOND)

    def check_pace(self, author: int, slow_s: int, now_ns: int) -> None:
        """Raises RefusedError if the author's last line is not `slow_s` seconds old, or everyone
        together has written LINES_A_SECOND within one."""
        if len(self._newest_ns) == LINES_A_SECOND and now_ns - self._newest_ns[0] < SECOND_NS:
            text = "everyone writes at once; try again in 1 s"
            raise RefusedError(ErrorCode.RATE_LIMITED, text, 1_000)
        written_ns = self._written_ns.get(author)
        if written_ns is None:
            return
        wait_ms = (written_ns + slow_s * SECOND_NS - now_ns + 999_999) // 1_000_000
        if wait_ms > 0:
            text = f"the chat is slow: one line every {slow_s} s; write again in "
            raise RefusedError(
                ErrorCode.RATE_LIMITED,
                f"{text}{-(-wait_ms // 1_000)} s",
                min(wait_ms, 0xFFFF_FFFF),
            )

    def add(self, author: int, now_ns: int) -> int:
        """-> the new line's number."""
        self._last += 1
        self._newest_ns.append(now_ns)
        self._authors[self._last] = author
        if len(self._authors) > MAX_LINES:
            del self._authors[next(iter(self._authors))]
        self._written_ns.pop(author, None)
        self._written_ns[author] = now_ns
        if len(self._written_ns) > MAX_WRITERS:
            del self._written_ns[next(iter(self._written_ns))]
        return self._last

    def author(self, line: int) -> int:
        """Raises RefusedError."""
        author = self._authors.get(line)
        if author is None:
            raise RefusedError(ErrorCode.NO_SUCH_LINE)
        return author

    def delete(self, line: int) -> None:
        del self._authors[line]


class Reactions:
    """What was shown since it was last told: everyone's are counted, those on stage are shown by
    name, each with the last one."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._stage: dict[int, tuple[str, int]] = {}  # member -> emoji, account

    @property
    def pending(self) -> bool:
        return bool(self._counts)

    def add(self, emoji: str) -> None:
        self._counts[emoji] = self._counts.get(emoji, 0) + 1

    def show(self, emoji: str, member: int, account: int) -> None:
        if member in self._stage or len(self._stage) < MAX_SHOWN:
            self._stage[member] = (emoji, account)

    def take(self) -> tuple[ReactionsUpdate, tuple[int, ...]]:
        """-> the update, and the accounts of those whom it names."""
        stage = [Reaction(member=m, emoji=emoji) for m, (emoji, _) in self._stage.items()]
        update = ReactionsUpdate(counts=self._counts, stage=stage)
        authors = tuple(account for _, account in self._stage.values())
        self._counts, self._stage = {}, {}
        return update, authors
