"""The two ways to seal the egress's rows, for tests that hold for both."""

import pytest

from spaces_server.mixer import ipsec_mb
from spaces_server.mixer.seals import OpenSslSeals, Seals

OPENSSL, INTEL = KINDS = ("OpenSSL", "intel-ipsec-mb")


def library() -> ipsec_mb.Library:
    """Intel's; a test that needs it is skipped where it is not."""
    found = ipsec_mb.find()
    if found is None:
        pytest.skip("Intel's multi-buffer library is not installed (Debian: libipsec-mb1)")
    return found


def new_seals(kind: str) -> Seals:
    return OpenSslSeals() if kind == OPENSSL else ipsec_mb.IpsecMbSeals(library())
