"""The `pgearth` command: the server, migrations, and everything that brings data into the archive."""
