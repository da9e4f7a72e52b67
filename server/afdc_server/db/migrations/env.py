"""Run by alembic: migrations on the connection that `afdc_server.db.migrate` gives."""

from alembic import context

from afdc_server.db.schema import metadata as service
from afdc_server.ledger.schema import metadata as ledger

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=[service, ledger],
    transaction_per_migration=False,
)
context.run_migrations()
