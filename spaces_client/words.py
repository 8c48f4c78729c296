"""What a person reads: times, people, notices.  Texts from elsewhere come here as they are, and
leave as they can be shown."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from protocol import frames
from protocol.link import Link
from protocol.roles import Role
from protocol.text import shown


def local_time(utc_s: int) -> str:
    """When, by this machine's clock; an instant that no calendar has is none."""
    try:
        return datetime.fromtimestamp(utc_s).astimezone().strftime("%Y-%m-%d %H:%M")
    except (OverflowError, OSError, ValueError):
        return "?"


def for_how_long(seconds: float) -> str:
    """About, in the largest unit that fits."""
    for unit, unit_s in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def count(number: int, one: str, many: str) -> str:
    """`1 person listens`, `2 people listen`."""
    return f"{number} {one if number == 1 else many}"


def person(name: str, handle: str) -> str:
    """A guest has no handle."""
    return f"{shown(name)} @{shown(handle)}" if handle else f"{shown(name)} (guest)"


def argument(word: str) -> str:
    """As it is to be typed behind a command: not to be taken for an option."""
    return f"-- {word}" if word.startswith("-") else word


def role(which: Role) -> str:
    return which.value.replace("_", "-")


def chat_line(line: frames.ChatUpdate) -> str:
    return f"[{line.line}] {person(line.name, line.handle)}: {shown(line.text)}"


def indented(text: str, by: str = "    ") -> str:
    """A text from elsewhere that may have several lines."""
    return "\n".join(by + line for line in shown(text, lines=True).split("\n"))


def one_line(text: str) -> str:
    return shown(" / ".join(text.split("\n")))


def reactions(counts: Iterable[tuple[str, int]]) -> str:
    """The most frequent first."""
    ordered = sorted(counts, key=lambda pair: -pair[1])
    return "  ".join(f"{shown(emoji)} ×{number}" for emoji, number in ordered)


def invitation(message: frames.MessageInfo, server: Link) -> str:
    """How to follow it; empty if the message is none."""
    if not message.space:
        return ""
    link = replace(server, space=message.space, invite=message.invite or None)
    return f"spaces join '{link}'"


def notice(frame: frames.Notice, server: Link) -> str | None:
    """What a notice from the server says; None of those that are about the space one is in."""
    match frame:
        case frames.MessageNotice(message=message):
            said = one_line(message.text)
            where = invitation(message, server)
            if where:
                return f"@{shown(message.sender)} invites you: {said}{' ' * bool(said)}{where}"
            return f"@{shown(message.sender)} writes: {said}"
        case frames.Unread():
            return "you have new messages: spaces messages"
        case frames.Started(space=space, title=title, host=host):
            return f"“{shown(title)}” of @{shown(host)} has started: spaces join {argument(space)}"
        case frames.OutcomeNotice(report=report, text=text):
            return f"your report {report}: {one_line(text)}"
        case frames.Warned(text=text):
            return one_line(text)
        case frames.AccessGranted(by=by):
            return "you have access to this server now" + (f"; @{shown(by)} gave it" if by else "")
    return None
