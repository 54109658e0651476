"""Writes docs/functions.md from a migrated database's comments: see `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

from psycopg import Connection

from pgearth.loaders.server.connection import connect

HEADER = """# Functions, procedures and tables

Generated from the comments in the database by `make docs`; do not edit. A function marked (writer) needs the role
eo_writer, every other one eo_reader.
"""


def reference(connection: Connection) -> str:
    """The reference as Markdown: every public function, procedure and table of schema eo with its comment."""
    parts = [HEADER, "## Functions and procedures\n"]
    for name, kind, arguments, result, comment in connection.execute(
        """
        select p.proname, p.prokind = 'p', pg_get_function_arguments(p.oid), pg_get_function_result(p.oid),
               obj_description(p.oid, 'pg_proc')
        from pg_proc p
        where p.pronamespace = 'eo'::regnamespace
        order by 1, 3
        """
    ):
        parts.append(f"### eo.{name}\n\n```sql\n{'call ' if kind else ''}eo.{name}({lines(arguments)})")
        parts.append((f" returns {result}" if result else "") + f"\n```\n\n{comment}\n")
    parts.append("## Tables\n")
    for table, comment, oid in connection.execute(
        """
        select relname, obj_description(oid, 'pg_class'), oid from pg_class
        where relnamespace = 'eo'::regnamespace and relkind in ('r', 'p', 'v', 'm') and not relispartition
        order by 1
        """
    ).fetchall():
        parts.append(f"### eo.{table}\n\n{comment}\n\n| column | type | meaning |\n|---|---|---|")
        for column, data_type, meaning in connection.execute(
            "select attname, format_type(atttypid, atttypmod), col_description(attrelid, attnum) from pg_attribute"
            " where attrelid = %s and attnum > 0 and not attisdropped order by attnum",
            (oid,),
        ):
            parts.append(f"| {column} | {data_type} | {meaning} |")
        parts.append("")
    return "\n".join(parts).replace(")\n returns", ") returns")


def lines(arguments: str) -> str:
    """Break a list of more than three arguments into lines."""
    return "\n    " + arguments.replace(", ", ",\n    ") + "\n" if arguments.count(", ") > 2 else arguments


if __name__ == "__main__":
    with connect() as database:
        Path(sys.argv[1]).write_text(reference(database))
