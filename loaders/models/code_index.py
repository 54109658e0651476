"""`pgearth index codes`: what makes searches by hash code fast."""

from __future__ import annotations

import click
from psycopg import Connection

from pgearth.loaders.server.connection import connect


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


def without_codes(connection: Connection, encoder: str | None = None) -> str | None:
    """Why there is nothing to index, in words, as in an archive that is new or restored without codes; else None."""
    row = connection.execute(
        "select exists (select from eo.encoder where bits is not null and retired_at is null)"
    ).fetchone()
    if encoder is None and row == (False,):
        return "The archive has no hash function, and so no codes to index: pgearth encode"
    row = connection.execute(
        """
        select e.name || ':' || e.version
        from eo.encoder e
        where e.encoder_id = eo_internal.encoder_id(%s, true)
          and not exists (select from eo.bucket b where b.encoder_id = e.encoder_id)
        """,
        (encoder,),
    ).fetchone()
    return f"The archive has no codes of {row[0]} to index: pgearth encode --encoder {row[0]}" if row else None


@click.command()
@click.option("--encoder", help="Hash function, NAME or NAME:VERSION.  [default: the current one]")
def codes(encoder: str | None) -> None:
    """Pack the codes of a hash function into a file that searches map into memory.

    On a server without PL/Python, build B-trees for plain SQL instead. Searches are exact without either, or with a
    file that is out of date, only slower; `pgearth encode` does the same at its end.
    """
    with connect(autocommit=True) as connection:
        click.echo(without_codes(connection, encoder) or f"{build_code_index(connection, encoder)}.")
