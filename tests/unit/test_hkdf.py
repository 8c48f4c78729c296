"""HKDF against its specification, its HMAC against the standard library's, both on their edges."""

import hmac

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from hypothesis import given
from hypothesis import strategies as st

from protocol.hkdf import BLOCK_BYTES, expand, extract_and_expand, hmac_sha256

secrets = st.binary(min_size=32, max_size=32)


@given(key=st.binary(max_size=BLOCK_BYTES), text=st.binary(max_size=200))
def test_hmac_is_that_of_the_standard_library(key: bytes, text: bytes) -> None:
    assert hmac_sha256(key, text) == hmac.digest(key, text, "sha256")


def test_rfc_4231_hmac() -> None:
    # Test cases 1 and 2.
    assert hmac_sha256(b"\x0b" * 20, b"Hi There").hex() == (
        "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
    )
    assert hmac_sha256(b"Jefe", b"what do ya want for nothing?").hex() == (
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )


def test_a_key_that_would_have_to_be_hashed_is_refused() -> None:
    with pytest.raises(ValueError, match="65 bytes"):
        hmac_sha256(bytes(BLOCK_BYTES + 1), b"")


def test_rfc_5869_without_info() -> None:
    # A.3: salt and info are empty. With SHA-256 an empty salt and 32 zeros are the same.
    okm = extract_and_expand(bytes(32), b"\x0b" * 22, 2)
    assert b"".join(okm)[:42].hex() == (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    )


@given(salt=secrets, secret=st.binary(max_size=64), count=st.integers(1, 4))
def test_extract_and_expand_is_hkdf(salt: bytes, secret: bytes, count: int) -> None:
    whole = HKDF(SHA256(), 32 * count, salt, b"").derive(secret)
    assert b"".join(extract_and_expand(salt, secret, count)) == whole


@given(secret=secrets, info=st.binary(max_size=40), size=st.integers(1, 32))
def test_expand_is_hkdf_expand(secret: bytes, info: bytes, size: int) -> None:
    assert expand(secret, info, size) == HKDFExpand(SHA256(), size, info).derive(secret)


def test_expand_gives_no_more_than_one_hmac() -> None:
    with pytest.raises(ValueError, match="33 bytes"):
        expand(bytes(32), b"", 33)
