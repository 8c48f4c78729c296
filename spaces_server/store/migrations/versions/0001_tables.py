"""The tables of the first version."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", NUMBER, autoincrement=False, nullable=False),
        sa.Column("handle", sa.Text(), nullable=False),
        sa.Column("skeleton", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("access", sa.Boolean(), nullable=False),
        sa.Column("invited_by", NUMBER, nullable=False),
        sa.Column("since_s", NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_accounts"),
    )
    op.create_table(
        "bans",
        sa.Column("account", NUMBER, autoincrement=False, nullable=False),
        sa.Column("moderator", NUMBER, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at_s", NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("account", name="pk_bans"),
    )
    op.create_table(
        "blocks",
        sa.Column("blocker", NUMBER, nullable=False),
        sa.Column("blocked", NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("blocker", "blocked", name="pk_blocks"),
    )
    op.create_index("ix_blocks_blocked", "blocks", ["blocked"])
    op.create_table(
        "counters",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_counters"),
    )
    op.create_table(
        "devices",
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("account", NUMBER, nullable=False),
        sa.Column("number", NUMBER, nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("added_s", NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_devices"),
    )
    op.create_index("ix_devices_account", "devices", ["account"])
    op.create_table(
        "evidence_keys",
        sa.Column("report", NUMBER, nullable=False),
        sa.Column("device", sa.LargeBinary(), nullable=False),
        sa.Column("sender_key", sa.LargeBinary(), nullable=False),
        sa.Column("sealed_key", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("report", "device", name="pk_evidence_keys"),
    )
    op.create_table(
        "evidence_parts",
        sa.Column("report", NUMBER, nullable=False),
        sa.Column("part", NUMBER, nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("report", "part", name="pk_evidence_parts"),
    )
    op.create_table(
        "follows",
        sa.Column("follower", NUMBER, nullable=False),
        sa.Column("followed", NUMBER, nullable=False),
        sa.Column("since_s", NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("follower", "followed", name="pk_follows"),
    )
    op.create_index("ix_follows_followed", "follows", ["followed"])
    op.create_table(
        "invites",
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("space", sa.Text(), nullable=False),
        sa.Column("issuer", NUMBER, nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("person", NUMBER, nullable=False),
        sa.Column("until_s", NUMBER, nullable=False),
        sa.Column("uses", NUMBER, nullable=False),
        sa.Column("max_uses", NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("token", name="pk_invites"),
    )
    op.create_index("ix_invites_space", "invites", ["space"])
    op.create_table(
        "messages",
        sa.Column("id", NUMBER, autoincrement=False, nullable=False),
        sa.Column("sender", NUMBER, nullable=False),
        sa.Column("recipient", NUMBER, nullable=False),
        sa.Column("at_s", NUMBER, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("space", sa.Text(), nullable=False),
        sa.Column("invite", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_messages"),
    )
    op.create_index("ix_messages_recipient_id", "messages", ["recipient", "id"])
    op.create_index("ix_messages_sender_id", "messages", ["sender", "id"])
    op.create_index("ix_messages_sender_recipient_id", "messages", ["sender", "recipient", "id"])
    op.create_table(
        "note_parts",
        sa.Column("post", NUMBER, nullable=False),
        sa.Column("part", NUMBER, nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("post", "part", name="pk_note_parts"),
    )
    op.create_table(
        "notices",
        sa.Column("id", NUMBER, autoincrement=False, nullable=False),
        sa.Column("account", NUMBER, nullable=False),
        sa.Column("frame", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_notices"),
    )
    op.create_index("ix_notices_account", "notices", ["account"])
    op.create_table(
        "posts",
        sa.Column("id", NUMBER, autoincrement=False, nullable=False),
        sa.Column("author", NUMBER, nullable=False),
        sa.Column("at_s", NUMBER, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("space", sa.Text(), nullable=False),
        sa.Column("note_ms", NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_posts"),
    )
    op.create_index("ix_posts_author_id", "posts", ["author", "id"])
    op.create_table(
        "reminders",
        sa.Column("space", sa.Text(), nullable=False),
        sa.Column("account", NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("space", "account", name="pk_reminders"),
    )
    op.create_index("ix_reminders_account", "reminders", ["account"])
    op.create_table(
        "removals",
        sa.Column("space", sa.Text(), nullable=False),
        sa.Column("account", NUMBER, nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("moderator", NUMBER, nullable=False),
        sa.Column("at_s", NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("space", "account", "key", name="pk_removals"),
    )
    op.create_index("ix_removals_account", "removals", ["account"])
    op.create_table(
        "reports",
        sa.Column("id", NUMBER, autoincrement=False, nullable=False),
        sa.Column("reporter", NUMBER, nullable=False),
        sa.Column("person", NUMBER, nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("space", sa.Text(), nullable=False),
        sa.Column("category", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("at_s", NUMBER, nullable=False),
        sa.Column("evidence_s", NUMBER, nullable=False),
        sa.Column("evidence_until_s", NUMBER, nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("moderator", NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_reports"),
    )
    op.create_table(
        "settings",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_settings"),
    )
    op.create_table(
        "spaces",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("host", NUMBER, nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("settings", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("starts_s", NUMBER, nullable=False),
        sa.Column("ended_s", NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_spaces"),
    )
    op.create_table(
        "stages",
        sa.Column("space", sa.Text(), nullable=False),
        sa.Column("account", NUMBER, nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("muted", sa.Boolean(), nullable=False),
        sa.Column("held", sa.Boolean(), nullable=False),
        sa.Column("order", NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("space", "account", name="pk_stages"),
    )
    op.create_index("ix_stages_account", "stages", ["account"])
    op.create_table(
        "waiting_accounts",
        sa.Column("account", NUMBER, autoincrement=False, nullable=False),
        sa.Column("asked_s", NUMBER, nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("account", name="pk_waiting_accounts"),
    )
