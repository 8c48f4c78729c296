"""Writes the next step; see the package."""

import sys
from pathlib import Path

from alembic import command
from sqlalchemy import create_engine

from spaces_server.store.migrations import config


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit('usage: python -m spaces_server.store.migrations "what changes"')
    number = 1 + len(list((Path(__file__).parent / "versions").glob("*.py")))
    with create_engine("sqlite://").connect() as connection:
        command.upgrade(config(connection), "head")
        command.revision(config(connection), sys.argv[1], autogenerate=True, rev_id=f"{number:04}")


main()
