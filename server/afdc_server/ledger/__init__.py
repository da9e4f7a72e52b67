"""The stage ledger: what is done, in one database."""

from afdc_server.ledger.sql import SqlLedger, open_sqlite

__all__ = ["SqlLedger", "open_sqlite"]
