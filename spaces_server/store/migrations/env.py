"""Run by alembic for every command: on the connection that config() was given, and in its
transaction, so that a step is made whole or not at all."""

from alembic import context

from spaces_server.store.schema import METADATA

# SQLite changes little of a table in place: there, `batch` steps copy it.
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
