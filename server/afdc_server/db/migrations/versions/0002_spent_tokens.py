"""What a tenant has spent on jobs that are gone."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tenants", sa.Column("spent_tokens", sa.BigInteger(), nullable=False, server_default="0"))
