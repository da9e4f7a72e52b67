"""Forget a job with everything that it made."""

from __future__ import annotations

from sqlalchemy import Connection, delete, select

from afdc_server.accounts.store import keep_spent
from afdc_server.db.schema import adapters, datasets, reviews, service_jobs
from afdc_server.jobs.rebuild import PUBLISHED, published_locations
from afdc_server.ledger import schema as ledger


def delete_job(connection: Connection, tenant: str, job: str) -> list[str]:
    """Remove its rows from every table. Returns the artifact folders, which the caller removes after the commit."""
    made = select(datasets.c.id).where(datasets.c.job == job, datasets.c.tenant == tenant)
    connection.execute(delete(reviews).where(reviews.c.dataset.in_(made)))
    locations: list[str] = []
    for table in (datasets, adapters):
        where = (table.c.job == job, table.c.tenant == tenant)
        locations += connection.execute(select(table.c.location).where(*where)).scalars()
        connection.execute(delete(table).where(*where))
    values = ledger.values.c
    ids = connection.execute(select(values.value).where(values.job == job, values.key == PUBLISHED)).scalar()
    locations += [one for one in published_locations(ids or {}) if one not in locations]  # of an end that was cut off
    mine = (service_jobs.c.id == job, service_jobs.c.tenant == tenant)
    keep_spent(connection, tenant, connection.execute(select(service_jobs.c.usage).where(*mine)).scalar() or {})
    for table in ledger.metadata.sorted_tables:
        connection.execute(delete(table).where(table.c.job == job))
    connection.execute(delete(service_jobs).where(*mine))
    return locations
