"""The server's records in a database, SQLite or PostgreSQL, behind a thread of its own."""
