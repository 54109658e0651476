"""`pgearth index codes`: what makes searches by hash code fast."""

from __future__ import annotations

from psycopg import Connection


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
