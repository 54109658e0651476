"""`pgearth index vectors`: the HNSW index of the approximate search by vector."""

from __future__ import annotations

from psycopg import Connection


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
