"""`pgearth index codes`: what makes searches by hash code fast."""

from __future__ import annotations

import click
from psycopg import Connection

from loaders.database import connect


def build_code_index(connection: Connection, encoder: str | None = None) -> str:
    """Pack the codes of a hash function (None: the current one), or, without PL/Python, index them by B-trees.

    Returns what was built, in words.
    """
    row = connection.execute("select eo_internal.has_python()").fetchone()
    if row == (True,):
        row = connection.execute("select eo.build_code_index(%s)", (encoder,)).fetchone()
        assert row is not None
        return f"{row[0]:,} distinct codes packed"
    row = connection.execute("select eo.build_plain_code_index(%s)", (encoder,)).fetchone()
    assert row is not None
    return f"{row[0]} B-trees built"


@click.command()
@click.option("--encoder", help="Hash function, NAME or NAME:VERSION.  [default: the current one]")
def codes(encoder: str | None) -> None:
    """Pack the codes of a hash function into a file that searches map into memory.

    On a server without PL/Python, build B-trees for plain SQL instead. Searches are exact without either, or with a
    file that is out of date, only slower; `pgearth encode` does the same at its end.
    """
    with connect(autocommit=True) as connection:
        click.echo(f"{build_code_index(connection, encoder)}.")
