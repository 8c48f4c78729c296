"""What texts of people may hold: names, titles, chat, posts, messages, and the handles by which
accounts are told apart.

A server refuses what does not pass `clean`; a client shows what came from elsewhere through
`shown`.  So terminal escape sequences, characters that turn the direction of writing round, and
marks heaped on one letter reach no screen.

Handles are compared by their `skeleton`: of two that look alike, or differ in case, only one can be
registered.  The table of lookalikes is that of Unicode Technical Standard 39 (confusables.txt), the
scripts are those of the Unicode Character Database (Scripts.txt); the package confusable-homoglyphs
brings both.  Its version is pinned, because stored skeletons depend on it.
"""

import json
import re
from bisect import bisect_right
from functools import cache
from importlib.resources import files
from typing import Any
from unicodedata import category, normalize

MAX_HANDLE_CHARS = 30
MAX_MARKS = 4  # in a row: no script needs more, and heaps of them run over other lines
MAX_HANDLE_MARKS = 2
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

_REFUSED = frozenset(("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"))
_MARKS = frozenset(("Mn", "Mc", "Me"))
# Joiners make one emoji of several and choose the form of letters in Arabic and Indic scripts;
# between other characters they would only be hidden there.
_JOINERS = "\u200c\u200d"
_JOINED = frozenset(("So", "Sm", "Sk", "Mn", "Mc", "Lo"))
# Letters and marks of which nothing is to be seen.
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0")
_BLANK = frozenset("\u2800")  # takes part in drawings, but alone it is nothing


class TextError(ValueError):
    """A text that is not taken; its message says why, to a person."""


# -- texts --------------------------------------------------------------------------------------


def _refused(text: str, lines: bool) -> list[int]:
    """Where the characters stand that must not be shown."""
    if text.isascii() and text.isprintable():  # as most are
        return []
    found = []
    marks = 0
    kinds = [category(c) for c in text]
    for i, (c, kind) in enumerate(zip(text, kinds, strict=True)):
        marks = marks + 1 if kind in _MARKS else 0
        if c in _JOINERS:
            fits = 0 < i < len(text) - 1 and {kinds[i - 1], kinds[i + 1]} <= _JOINED
        elif c == "\n":
            fits = lines
        else:
            fits = kind not in _REFUSED and c not in _INVISIBLE and marks <= MAX_MARKS
        if not fits:
            found.append(i)
    return found


def clean(text: str, max_chars: int, *, lines: bool = False) -> str:
    """The text as it may be stored and shown: NFC, without blanks around it.  lines: it may have
    several lines.  Raises TextError for control and format characters, which include escape
    sequences; for nothing but blanks; and for more than `max_chars` characters."""
    text = normalize("NFC", text).strip()
    if lines:
        text = text.replace("\r\n", "\n")
    if len(text) > max_chars:
        raise TextError(f"this text has {len(text)} characters; {max_chars} are allowed")
    if _refused(text, lines):
        raise TextError("texts must not contain control characters or hidden ones")
    if all(category(c)[0] in "ZMC" or c in _BLANK for c in text):
        raise TextError("a text must not be blank")
    return text


def shown(text: str, *, lines: bool = False) -> str:
    """The text as a client may show it, whoever it came from: U+FFFD stands for each character
    that `clean` would refuse.  Never raises."""
    refused = frozenset(_refused(text, lines))
    return "".join(REPLACEMENT if i in refused else c for i, c in enumerate(text))


# -- handles ------------------------------------------------------------------------------------

# Scripts that are written together (the "highly restrictive" level of UTS 39, section 5.2).
_WRITTEN_TOGETHER = (
    {"LATIN", "HAN", "HIRAGANA", "KATAKANA"},
    {"LATIN", "HAN", "BOPOMOFO"},
    {"LATIN", "HAN", "HANGUL"},
)
_OF_ANY_SCRIPT = {"COMMON", "INHERITED"}


def handle(text: str) -> str:
    """The handle that somebody typed, as it is stored and shown: NFKC, in lower case (so that no
    capital I can pass for an l), without an @ before it.

    It has 1 to 30 letters, decimal digits, underscores, and marks on letters; at least one letter;
    letters of one script, or of those that Japanese, Chinese and Korean write together; digits of
    one sort.  Raises TextError otherwise."""
    folded = normalize("NFKC", normalize("NFKC", text.strip()).lower()).removeprefix("@")
    folded = folded.replace("i\u0307", "i")  # which is what a dotted capital I becomes
    if not 0 < len(folded) <= MAX_HANDLE_CHARS:
        raise TextError(f"a handle has 1 to {MAX_HANDLE_CHARS} characters")
    scripts, zeros = set(), set()
    marks = MAX_HANDLE_MARKS  # in a row; they need a letter before them
    for c in folded:
        kind, script = category(c), _script(c)
        marks = marks + 1 if kind in _MARKS else 0 if kind[0] == "L" else MAX_HANDLE_MARKS
        if kind == "Nd":
            zeros.add(ord(c) - int(c))
        elif c == "ー":  # belongs to both kana, and so to neither in the data
            script = "KATAKANA"
        elif not (
            c == "_"
            or (kind in ("Mn", "Mc") and marks <= MAX_HANDLE_MARKS and c not in _INVISIBLE)
            # Letters of no script are signs, like the apostrophes that are letters.
            or (kind[0] == "L" and script not in _OF_ANY_SCRIPT and c not in _INVISIBLE)
        ):
            raise TextError("a handle has only letters, digits and underscores")
        scripts.add(script)
    if not any(category(c).startswith("L") for c in folded):
        raise TextError("a handle has a letter in it")
    scripts -= _OF_ANY_SCRIPT
    if "UNKNOWN" in scripts or not (
        len(scripts) <= 1 or any(scripts <= together for together in _WRITTEN_TOGETHER)
    ):
        raise TextError("the letters of a handle are of one script")
    if len(zeros) > 1:
        raise TextError("the digits of a handle are of one sort")
    return folded


def skeleton(handle: str) -> str:
    """The same for handles that look alike or differ in case (UTS 39, section 4, with case
    folding).  Only for comparing: it is not to be shown."""
    text = normalize("NFD", handle.casefold())
    text = normalize("NFD", "".join(map(_looks_like, text)))
    return _MORE.sub(lambda match: _MORE_LOOKALIKES.get(match[0][0], match[0][0]), text)


# What the table does not have, because it keeps the cases apart or goes by one font: a capital I is
# an l, and a w two v; that dotted letters have a dot, and how many underscores there are in a row,
# is not seen.
_MORE = re.compile(r"[ijl]\u0307?|w|_+")
_MORE_LOOKALIKES = {"i": "l", "w": "vv"}


@cache
def _looks_like(c: str) -> str:
    """What stands for the character in a skeleton.  Case folding can lead from a prototype to
    another lookalike, once even round in a circle."""
    way: list[str] = []
    while c not in way:
        way.append(c)
        c = normalize("NFD", "".join(map(_prototypes().__getitem__, c)).casefold())
    return min(way[way.index(c) :])


class _Prototypes(dict[str, str]):
    """A character without lookalikes stands for itself."""

    def __missing__(self, c: str) -> str:
        return c


@cache
def _prototypes() -> _Prototypes:
    """What each character is mapped to.

    The package gives pairs without direction: in each set of lookalikes, every source is paired
    with the prototype.  So that is the one with several partners or several characters; of a mere
    pair, either will do."""
    pairs: dict[str, set[str]] = {}
    for one, others in _data("confusables.json").items():
        for other in others:
            a, b = (text.replace("\u200e", "") for text in (one, other["c"]))
            pairs.setdefault(a, set()).add(b)
            pairs.setdefault(b, set()).add(a)

    def rank(text: str) -> tuple[bool, int, str]:
        return len(text) > 1, len(pairs[text]), text

    best = {text: max({text} | partners, key=rank) for text, partners in pairs.items()}
    return _Prototypes((c, to) for c, to in best.items() if len(c) == 1)


@cache
def _scripts() -> tuple[list[int], list[tuple[int, str]]]:
    """The first characters of all ranges, in order; the last of each range, and its script."""
    data = _data("categories.json")
    names, ranges = data["iso_15924_aliases"], data["code_points_ranges"]
    return [first for first, *_ in ranges], [(last, names[name]) for _, last, name, _ in ranges]


def _script(c: str) -> str:
    firsts, ranges = _scripts()
    last, script = ranges[bisect_right(firsts, ord(c)) - 1]
    return script if ord(c) <= last else "UNKNOWN"


def _data(name: str) -> dict[str, Any]:
    """Read when the first handle comes: it takes 60 ms, and not every program sees one."""
    data: dict[str, Any] = json.loads(files("confusable_homoglyphs").joinpath(name).read_bytes())
    return data
