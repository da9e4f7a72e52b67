"""Tables of the service, beside those of the ledger (`afdc_server.ledger.schema`), whose `job` is `service_jobs.id`.

Every row that a client can name has its tenant, and every query names it.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
)

metadata = MetaData()

ID = String(64)
NAME = String(200)

tenants = Table(
    "tenants",
    metadata,
    Column("id", ID, primary_key=True),
    Column("limits", JSON, nullable=False),  # its own, in the place of the server's
    Column(
        "spent_tokens", BigInteger, nullable=False, server_default="0"
    ),  # of jobs that are gone, and of direct requests
    Column("created_at", Float, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", ID, primary_key=True),
    Column("tenant", ID, ForeignKey("tenants.id"), nullable=False, index=True),
    Column("name", NAME, nullable=False),
    Column("hint", String(16), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),  # HMAC-SHA256 under the server's secret
    Column("scopes", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("last_used_at", Float),
    Column("revoked_at", Float),
)

seed_sets = Table(
    "seed_sets",
    metadata,
    Column("id", ID, primary_key=True),
    Column("tenant", ID, nullable=False),
    Column("name", NAME, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("task", JSON),
    Column("report", JSON, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("location", Text, nullable=False),  # of its rows in the artifact store
    Column("meta", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    Index("ix_seed_sets_tenant_id", "tenant", "id"),
)

service_jobs = Table(
    "service_jobs",
    metadata,
    Column("id", ID, primary_key=True),
    Column("tenant", ID, nullable=False),
    Column("name", NAME, nullable=False),
    Column("status", String(16), nullable=False, index=True),
    Column("request", JSON, nullable=False),  # JobCreate as it was taken
    Column("config", JSON, nullable=False),
    Column("config_hash", String(64), nullable=False),
    Column("model", Text, nullable=False),
    Column("model_revision", String(128), nullable=False),
    Column("engine", String(128), nullable=False),
    Column("parent", ID),
    Column("stage", String(64), nullable=False),
    Column("round", Integer),
    Column("progress", JSON, nullable=False),
    Column("usage", JSON, nullable=False),
    Column("error", JSON),
    Column("dataset", ID),
    Column("adapter", ID),
    Column("result", JSON),
    Column("attempt", Integer, nullable=False),  # how often it was started
    Column("worker", String(64)),  # who runs it, and until when without a sign of life
    Column("lease_until", Float),
    Column("version", Integer, nullable=False),  # rises with every change: the ETag
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("updated_at", Float, nullable=False),
    Index("ix_service_jobs_tenant_id", "tenant", "id"),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("tenant", ID, nullable=False),
    Column("key", String(255), nullable=False),
    Column("request", String(64), nullable=False),  # hash of method, path and body
    Column("status", Integer, nullable=False),
    Column("reply", LargeBinary, nullable=False),
    Column("location", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    PrimaryKeyConstraint("tenant", "key"),
)

datasets = Table(
    "datasets",
    metadata,
    Column("id", ID, primary_key=True),
    Column("tenant", ID, nullable=False),
    Column("job", ID, nullable=False, index=True),
    Column("version", Integer, nullable=False),
    Column("parent", ID),
    Column("task", JSON, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("rejected", BigInteger, nullable=False),
    Column("per_label", JSON, nullable=False),
    Column("reviewed", BigInteger, nullable=False),
    Column("files", JSON, nullable=False),  # [{path, bytes, sha256}]
    Column("location", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Index("ix_datasets_job_version", "job", "version", unique=True),
)

reviews = Table(
    "reviews",
    metadata,
    Column("dataset", ID, ForeignKey("datasets.id"), nullable=False),  # the version that they made
    Column("row", ID, nullable=False),
    Column("decision", String(16), nullable=False),
    Column("label", Text),
    Column("text", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("reviewer", NAME, nullable=False),
    Column("created_at", Float, nullable=False),
    PrimaryKeyConstraint("dataset", "row"),
)

adapters = Table(
    "adapters",
    metadata,
    Column("id", ID, primary_key=True),
    Column("tenant", ID, nullable=False),
    Column("job", ID, nullable=False, index=True),
    Column("name", String(128), nullable=False),
    Column("round", Integer, nullable=False),
    Column("final", Boolean, nullable=False),
    Column("activated", Boolean, nullable=False),
    Column("manifest", JSON, nullable=False),
    Column("files", JSON, nullable=False),
    Column("location", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Index("ix_adapters_job_name", "job", "name", unique=True),
)
