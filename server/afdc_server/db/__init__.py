"""The database: SQLite in a file by default, PostgreSQL by URL."""
