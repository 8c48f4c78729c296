"""Names that nobody can guess: of spaces, of invites."""

import base64
from collections.abc import Callable

TOKEN_BYTES = 9


def new_token(entropy: Callable[[int], bytes]) -> str:
    """12 characters that fit into a link, the first of them no `-`: a command would take the whole
    for an option."""
    while True:
        token = base64.urlsafe_b64encode(entropy(TOKEN_BYTES)).decode()
        if not token.startswith("-"):
            return token
