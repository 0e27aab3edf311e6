"""The tables of the ledger's database, and how an older database gets their new columns."""

from __future__ import annotations

import sqlalchemy as sa

METADATA = sa.MetaData()


JOBS = sa.Table(
    "jobs", METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("job", sa.JSON, nullable=False),          # the whole job, so that a sweep needs no file
    sa.Column("definition", sa.JSON, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),  # of the dataset, as it was built
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("built_at", sa.Double, nullable=False),
    sa.Column("joined_at", sa.Double),
    sa.Column("seconds", sa.Double),
    sa.Column("stopped", sa.Text),                      # why nothing more of it is sent
)  # fmt: skip


LEASES = sa.Table(
    "leases", METADATA,
    sa.Column("job", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("until", sa.Double, nullable=False),
)  # fmt: skip


SHARDS = sa.Table(
    "shards", METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("job", sa.Text, nullable=False, index=True),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("requests", sa.Integer, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("reask", sa.Integer, nullable=False),
    sa.Column("canary", sa.Integer),                    # the round whose first requests it holds
    sa.Column("settled", sa.Boolean, nullable=False, default=False),
    sa.Column("hold_until", sa.Double),
    sa.Column("hold_reason", sa.Text),
    sa.UniqueConstraint("job", "round", "number"),
)  # fmt: skip


BATCHES = sa.Table(
    "batches", METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("shard_id", sa.ForeignKey("shards.id"), nullable=False, index=True),
    sa.Column("token", sa.Text, nullable=False, unique=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("started_at", sa.Double, nullable=False),
    sa.Column("creating_at", sa.Double),
    sa.Column("creates", sa.Integer, nullable=False, default=0),
    sa.Column("file_id", sa.Text),
    sa.Column("batch_id", sa.Text),
    sa.Column("status", sa.Text),
    sa.Column("submitted_at", sa.Double),
    sa.Column("deadline_at", sa.Double),
    sa.Column("ended_at", sa.Double),
    sa.Column("collected_at", sa.Double),
    sa.Column("cancelled_by_us", sa.Boolean, nullable=False, default=False),
    sa.Column("misses", sa.Integer, nullable=False, default=0),
    sa.Column("cleaned", sa.Boolean, nullable=False, default=False),
    sa.Column("output_file_id", sa.Text),
    sa.Column("error_file_id", sa.Text),
    sa.Column("done", sa.Integer),
    sa.Column("failed", sa.Integer),
    sa.Column("errors", sa.JSON),                       # of the whole batch: [code, message, line]
    sa.Column("verdicts", sa.JSON),
    sa.Column("usage", sa.JSON),
    sa.Column("service_tiers", sa.JSON),
    sa.Column("hours", sa.JSON),                        # requests and tokens in cheap hours and others
)  # fmt: skip


LEARNED = sa.Table(
    "learned_limits", METADATA,
    sa.Column("provider", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
)  # fmt: skip


def add_new_columns(connection: sa.Connection) -> None:
    """Gives the tables of an older version the columns that came since: null, or 0 where they may not be."""
    inspector = sa.inspect(connection)
    for table in METADATA.sorted_tables:
        there = {column["name"] for column in inspector.get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                kind = column.type.compile(connection.dialect)
                default = "" if column.nullable else " NOT NULL DEFAULT 0"
                connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}{default}")
