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
    sa.Column("build", sa.Text),                        # which rows.parquet belongs to it
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
    sa.Column("largest", sa.BigInteger, nullable=False, default=0),  # bytes of the longest line
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
    sa.Column("account", sa.Text),                      # the fingerprint of the account that it was sent with
    sa.Column("rates", sa.JSON),                        # what tokens cost when it was sent
    sa.Column("cost_usd", sa.Double),
    sa.Column("trouble", sa.Text),                      # why it cannot be collected for now
    sa.Column("trouble_since", sa.Double),
    sa.Column("absent_since", sa.Double),               # the first complete listing without it
    sa.Column("look_at", sa.Double),                    # when it is looked at again
    sa.Column("refused_for", sa.Text),                  # file, queue, or other
    sa.Column("recovered", sa.Boolean, nullable=False, default=False),
    sa.Column("given_up", sa.Boolean, nullable=False, default=False),
    sa.Column("misses", sa.Integer, nullable=False, default=0),
    sa.Column("real_time", sa.Boolean, nullable=False, default=False),  # asked one by one
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


IDENTITY = sa.Table(
    "identity", METADATA,
    sa.Column("id", sa.Integer, primary_key=True),      # the one row
    sa.Column("ledger", sa.Text, nullable=False),       # which database this is; a copy has the same
    sa.Column("key", sa.Text, nullable=False),          # with which accounts are hashed
)  # fmt: skip


FOLDERS = sa.Table(
    "folders", METADATA,
    sa.Column("job", sa.Text, primary_key=True),
    sa.Column("folder", sa.Text, nullable=False),       # which folder the job's files lie in
    sa.Column("counter", sa.BigInteger, nullable=False),  # of builds and create calls
)  # fmt: skip


LEARNED = sa.Table(
    "learned_limits", METADATA,
    sa.Column("provider", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
)  # fmt: skip


def add_new_columns(connection: sa.Connection) -> None:
    """Gives the tables of an older version the columns that came since: null, or nothing where they may not be."""
    inspector = sa.inspect(connection)
    for table in METADATA.sorted_tables:
        there = {column["name"] for column in inspector.get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                kind = column.type.compile(connection.dialect)
                zero = "false" if isinstance(column.type, sa.Boolean) else "0"
                default = "" if column.nullable else f" NOT NULL DEFAULT {zero}"
                connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}{default}")
