"""The SQL database: tables, migrations, and how to reach it. SQLite here, TiDB elsewhere."""
