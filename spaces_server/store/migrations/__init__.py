"""From any older form of the database to the one that schema.py describes, step by step.

After a change of the records, a maintainer makes the next step in versions/ with

    .venv/bin/python -m spaces_server.store.migrations "what changes"

and reads it through: what is written is the difference between the steps so far and schema.py, and
a column that rows exist for needs a value for them.  A step that was released is never changed.
"""

import logging

from alembic.config import Config
from sqlalchemy import Connection


def config(connection: Connection) -> Config:
    """What alembic's commands need to work on this connection; there is no alembic.ini."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # not a word at each start
    made = Config(attributes={"connection": connection})
    made.set_main_option("script_location", f"{__package__}:")
    made.set_main_option("path_separator", "os")
    made.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    return made
