"""What texts may hold, and which handles are taken for one another."""

import sys
import unicodedata
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.text import (
    MAX_HANDLE_CHARS,
    MAX_MARKS,
    REPLACEMENT,
    TextError,
    clean,
    handle,
    shown,
    skeleton,
)

FAMILY = "👨\u200d👩\u200d👧"
FINE = [
    "Hello, world",
    "Grüße aus Köln",
    "naïve 12 % – “quoted”",
    "مرحبا بالعالم",
    "می\u200cخواهم",  # Persian needs the non-joiner between letters
    "हिन्दी",
    "ශ්\u200dරී",  # and Sinhala the joiner
    "日本語、한국어",
    "❤️\u200d🔥",
    FAMILY,
    "🧑🏽\u200d💻 and 🏳️\u200d🌈",
    "x̂̂",
]
UNFIT = [
    "\x1b[31mred",
    "bell\a",
    "null\0",
    "a\u202ebc",  # right-to-left override
    "a\u2066bc",  # isolate
    "a\u200fb",
    "soft\u00adhyphen",
    "zero\u200bwidth",
    "join\u200ded",  # between Latin letters a joiner is only hidden
    "\u200d👩",
    "👩\u200d",
    "\ufeffbom",
    "line\u2028separator",
    "private\ue000",
    "\ud800",
    "unassigned\u0378",
    "a\u3164b",  # a letter of which nothing is to be seen
    "q" + "\u0301\u0302\u0303\u0304\u0305",
    "c1\x9b31m",
]


@pytest.mark.parametrize("text", FINE)
def test_texts_of_all_scripts_and_emoji_pass(text: str) -> None:
    assert clean(text, 100) == unicodedata.normalize("NFC", text)
    assert shown(text) == text


@pytest.mark.parametrize("text", UNFIT)
def test_what_could_hurt_a_screen_is_refused_and_never_shown(text: str) -> None:
    for lines in (False, True):
        with pytest.raises(TextError, match="control characters or hidden ones"):
            clean(f"a {text} b" if text.strip() == text else text, 100, lines=lines)
        assert REPLACEMENT in shown(text, lines=lines)
        assert len(shown(text)) == len(text)


@pytest.mark.parametrize("text", ["", "   ", "\n\n", "\u00a0\u3000", "\u2800", "\ufe0f"])
def test_a_blank_text_is_none(text: str) -> None:
    with pytest.raises(TextError, match="blank"):
        clean(text, 100, lines=True)


def test_texts_are_trimmed_and_composed_before_they_are_measured() -> None:
    assert clean("  e\u0301  ", 1) == "é"
    assert clean("x" * 280, 280) == "x" * 280
    with pytest.raises(TextError, match="281 characters; 280 are allowed"):
        clean("x" * 281, 280)


def test_lines_only_where_they_are_wanted() -> None:
    assert clean("one\r\ntwo\nthree", 100, lines=True) == "one\ntwo\nthree"
    assert shown("one\ntwo", lines=True) == "one\ntwo"
    assert shown("one\ntwo") == f"one{REPLACEMENT}two"
    with pytest.raises(TextError):
        clean("one\ntwo", 100)
    with pytest.raises(TextError):
        clean("one\rtwo", 100, lines=True)


def test_marks_may_be_heaped_only_so_high() -> None:
    marks = "".join(chr(0x0310 + i) for i in range(MAX_MARKS))
    assert clean("z" + marks, 100)
    with pytest.raises(TextError):
        clean("z" + marks + "\u031f", 100)
    assert shown("z" + marks + "\u031f!") == "z" + marks + REPLACEMENT + "!"


@given(st.text(st.characters(exclude_categories=())), st.booleans())
def test_whatever_is_shown_is_harmless(text: str, lines: bool) -> None:
    """Also: what `clean` lets through is shown as it is."""
    seen = shown(text, lines=lines)
    assert all(c.isprintable() or c.isspace() or c in "\u200c\u200d" for c in seen)
    assert lines or "\n" not in seen
    assert not {unicodedata.category(c) for c in seen} & {"Cs", "Cn", "Co", "Zl", "Zp"}
    try:
        cleaned = clean(text, 1_000, lines=lines)
    except TextError:
        return
    assert shown(cleaned, lines=lines) == cleaned
    assert clean(cleaned, 1_000, lines=lines) == cleaned


# -- handles --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "is_"),
    [
        ("ada", "ada"),
        ("@Ada_1", "ada_1"),
        ("  Ada ", "ada"),
        ("ＡＤＡ", "ada"),
        ("＠ada", "ada"),
        ("a１", "a1"),
        ("Jose\u0301", "josé"),
        ("İstanbul", "istanbul"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("हिन्दी", "हिन्दी"),
        ("ไทยที่", "ไทยที่"),
        ("محمد٣", "محمد٣"),
        ("אברהם", "אברהם"),
        ("らーめん", "らーめん"),
        ("ひらとカナ漢字abc", "ひらとカナ漢字abc"),
        ("abc한글漢", "abc한글漢"),
        ("x" * MAX_HANDLE_CHARS, "x" * MAX_HANDLE_CHARS),
    ],
)
def test_handles_of_one_script_are_taken(typed: str, is_: str) -> None:
    assert handle(typed) == is_
    assert handle(is_) == is_


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        ("", "1 to 30"),
        ("@", "1 to 30"),
        ("x" * 31, "1 to 30"),
        ("\ufdfa\ufdfa", "1 to 30"),  # one character each, until it is normalised
        ("@@ada", "only letters"),
        ("ada lovelace", "only letters"),
        ("ada-l", "only letters"),
        ("ada.l", "only letters"),
        ("ada\n", None),
        ("ad\x1ba", "only letters"),
        ("a\u200db", "only letters"),
        ("😀a", "only letters"),
        ("oʼneil", "only letters"),  # an apostrophe that is a letter
        ("محـمد", "only letters"),  # a stroke that only stretches
        ("a\u3164b", "only letters"),
        ("a\u034fb", "only letters"),
        ("\u0301a", "only letters"),
        ("_\u0301a", "only letters"),
        ("e\u0323\u0301\u0302\u0303", "only letters"),
        ("a\u0378", "only letters"),
        ("123", "has a letter"),
        ("___", "has a letter"),
        ("аda", "one script"),  # Cyrillic a
        ("pαul", "one script"),
        ("abcあ한", "one script"),
        ("a१", "one script"),
        ("م1٣", "one sort"),
    ],
)
def test_other_handles_are_not(typed: str, why: str | None) -> None:
    if why is None:
        assert handle(typed) == typed.strip()
        return
    with pytest.raises(TextError, match=why):
        handle(typed)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Ada", "aDA"),
        ("ada", "ＡＤＡ"),
        ("coco", "сосо"),  # all Cyrillic
        ("paypal", "раураӏ"),
        ("vovo", "νονο"),  # all Greek
        ("ono", "0n0"),
        ("Paul", "PauI"),
        ("paul", "pau1"),
        ("rnary", "mary"),
        ("vvhy", "why"),
        ("a_b", "a__b"),
        ("strasse", "straße"),
        ("ıan", "ian"),
        ("カ", "力"),
    ],
)
def test_lookalikes_collide(one: str, other: str) -> None:
    assert skeleton(handle(one)) == skeleton(handle(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [("ada", "adda"), ("a_b", "ab"), ("nana", "vava"), ("jose", "josé"), ("clara", "dara"),
     ("up", "yp"), ("ab1", "ab2")],
)  # fmt: skip
def test_what_does_not_look_alike_does_not(one: str, other: str) -> None:
    assert skeleton(handle(one)) != skeleton(handle(other))


LETTERS = [
    c
    for c in map(chr, range(sys.maxunicode + 1))
    if unicodedata.category(c) in ("Ll", "Lu", "Lt", "Lo", "Lm", "Nd", "Mn", "Mc")
    and not 0x3400 < ord(c) < 0x9FFF and ord(c) < 0x20000 and not 0xAC00 <= ord(c) <= 0xD7A3
]  # fmt: skip


def test_a_skeleton_is_its_own_for_every_letter() -> None:
    """Case folding and the table could lead round in circles; they end at one character."""
    for c in LETTERS:
        of_c = skeleton(c)
        assert of_c
        assert skeleton(of_c) == of_c, c
        assert skeleton(c.upper()) == skeleton(c.lower()) == of_c, c


@given(st.text(st.sampled_from([*LETTERS, *"abcio_019ABCIO" * 200]), max_size=12))
def test_a_handle_stays_as_it_is(typed: str) -> None:
    try:
        normal = handle(typed)
    except TextError:
        return
    assert handle(normal) == normal
    assert clean(normal, MAX_HANDLE_CHARS) == unicodedata.normalize("NFC", normal)
    of_normal = skeleton(normal)
    assert skeleton(of_normal) == of_normal
    assert skeleton(normal.upper()) == of_normal


@given(st.text())
def test_any_text_is_a_handle_or_refused(typed: str) -> None:
    with suppress(TextError):
        assert skeleton(handle(typed))
