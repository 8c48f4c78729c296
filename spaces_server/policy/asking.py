"""What requests are checked for in the same way, whatever they are about."""

from protocol.frames import ErrorCode
from protocol.roles import ServerRole
from protocol.text import TextError, clean
from spaces_server.policy.effects import Asker, RefusedError
from spaces_server.records import AccountRecord


def require_account(asker: Asker) -> AccountRecord:
    """Raises RefusedError for a guest, and for the operator, who is nobody here."""
    if asker.account is None:
        raise RefusedError(ErrorCode.NO_ACCOUNT)
    return asker.account


def server_role(asker: Asker) -> ServerRole:
    """Raises RefusedError for a guest."""
    return ServerRole.OWNER if asker.operator else ServerRole(require_account(asker).role)


def clean_text(text: str, max_chars: int, *, lines: bool = False) -> str:
    """The text as it is stored.  Raises RefusedError with what is wrong with it."""
    try:
        return clean(text, max_chars, lines=lines)
    except TextError as error:
        raise RefusedError(ErrorCode.BAD_TEXT, str(error)) from error
