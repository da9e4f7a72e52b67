"""Tables of the ledger. One database may hold many jobs."""

from __future__ import annotations

from sqlalchemy import JSON, Column, Float, Integer, MetaData, PrimaryKeyConstraint, String, Table

SCHEMA_VERSION = 1

metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("job", String(64), primary_key=True),
    Column("fence", Integer, nullable=False),  # rises with every opening: an older holder can no longer commit
    Column("created_at", Float, nullable=False),
)

values = Table(
    "job_values",
    metadata,
    Column("job", String(64), nullable=False),
    Column("key", String(128), nullable=False),
    Column("value", JSON, nullable=False),
    PrimaryKeyConstraint("job", "key"),
)

stages = Table(
    "stages",
    metadata,
    Column("job", String(64), nullable=False),
    Column("round", Integer, nullable=False),
    Column("stage", String(64), nullable=False),
    Column("inputs", String(64), nullable=False),
    Column("result", JSON, nullable=False),
    Column("counters", JSON, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("finished_at", Float, nullable=False),
    PrimaryKeyConstraint("job", "round", "stage"),
)

chunks = Table(
    "chunks",
    metadata,
    Column("job", String(64), nullable=False),
    Column("round", Integer, nullable=False),
    Column("stage", String(64), nullable=False),
    Column("idx", Integer, nullable=False),
    Column("inputs", String(64), nullable=False),
    Column("ref", String(64), nullable=False),
    Column("rows", Integer, nullable=False),
    Column("counters", JSON, nullable=False),
    PrimaryKeyConstraint("job", "round", "stage", "idx"),
)

events = Table(
    "events",
    metadata,
    Column("job", String(64), nullable=False),
    Column("id", Integer, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("payload", JSON, nullable=False),
    Column("at", Float, nullable=False),
    PrimaryKeyConstraint("job", "id"),
)
