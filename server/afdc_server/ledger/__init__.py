"""The stage ledger: what is done, in one database."""

from afdc_server.ledger.sql import FencedError, SqlLedger, open_sqlite

__all__ = ["FencedError", "SqlLedger", "open_sqlite"]
