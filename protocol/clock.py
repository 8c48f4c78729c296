"""One clock for all: the server's, in samples of 48 kHz, modulo 2^32.

Audio timestamps begin anywhere, so they say of two moments only how far apart they are.  A speaker
who knows the server's clock tells how theirs lies on it; then whoever knows it as well can say how
long ago a sound was made (SPEC.md, section 12.13).
"""

from typing import Final

MASK: Final = 0xFFFF_FFFF


def samples_at(ns: int) -> int:
    """Of a clock that counts nanoseconds."""
    return ns * 48 // 1_000_000 & MASK


def difference(later: int, earlier: int) -> int:
    """later - earlier, in samples; negative if it is the other way round."""
    return ((later - earlier + (1 << 31)) & MASK) - (1 << 31)
