"""What the studio keeps: its database, tables, migrations and locks."""
