"""`pgearth index vectors`: the HNSW index of the approximate search by vector."""

from __future__ import annotations

import click
from psycopg import Connection

from pgearth.loaders.server.connection import connect


def build_vector_index(connection: Connection, encoder: str | None = None, memory: str | None = None) -> str:
    """Build the index of an encoder's vectors (None: the current one) unless it stands; return its name.

    `memory`: maintenance_work_mem of the session from now on, such as 2GB; None leaves the server's setting.
    """
    if memory is not None:
        connection.execute("select set_config('maintenance_work_mem', %s, false)", (memory,))
    row = connection.execute("select eo.build_vector_index(%s)", (encoder,)).fetchone()
    assert row is not None
    name: str = row[0]
    return name


def without_vectors(connection: Connection, encoder: str | None = None) -> str | None:
    """Why there is nothing to index, in words: rows that come later build the graph slowly. None where there is."""
    row = connection.execute(
        """
        select e.name || ':' || e.version
        from eo.encoder e
        where e.encoder_id = eo_internal.encoder_id(%s, false)
          and not exists (select from eo.embedding v where v.encoder_id = e.encoder_id)
        """,
        (encoder,),
    ).fetchone()
    return f"The archive has no vectors of {row[0]} to index: pgearth encode --encoder {row[0]}" if row else None


@click.command()
@click.option("--encoder", help="Encoder, NAME or NAME:VERSION.  [default: the current one]")
@click.option("--memory", metavar="SIZE", help="Memory for the build, such as 2GB.  [default: maintenance_work_mem]")
def vectors(encoder: str | None, memory: str | None) -> None:
    """Build the HNSW index that eo.similar_to_vector uses when it is asked for approximate results.

    It is fastest when the graph fits into --memory: about 1.1 kB for each vector of 128 dimensions. Other sessions see
    how far it is in pg_stat_progress_create_index. They can search meanwhile, but not store vectors of this encoder.
    An interrupted build leaves nothing behind; run the command again.
    """
    with connect(autocommit=True) as connection:
        # pgvector tells by a notice when the graph outgrows the memory, from where on the build is slow.
        connection.add_notice_handler(lambda notice: click.echo(notice.message_primary, err=True))
        click.echo(
            without_vectors(connection, encoder)
            or f"The index {build_vector_index(connection, encoder, memory)} stands."
        )
