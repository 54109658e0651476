"""`pgearth annotate`: land cover, countries and scene classes of patches, by eo.annotate, in one process or several."""

from __future__ import annotations

from dataclasses import dataclass, replace

from psycopg import Connection

from pgearth.loaders.server.connection import connect
from pgearth.loaders.work.progress import progress
from pgearth.loaders.work.run import run_tasks
from pgearth.loaders.work.task import Engine
from pgearth.pyfuncs.errors import PgearthError

RULES = ("overlap", "bigearthnet-v2")
PATCHES_PER_TASK = 50_000


@dataclass(frozen=True)
class Annotation:
    """A piece of annotation: the arguments of eo.annotate, for patches of `cells` only.

    `what` of None is all there is data for; `patches` is how many of the cells' patches are to be visited.
    """

    what: tuple[str, ...] | None = None
    rule: str = "overlap"
    minimal_overlap: float = 0
    source: str | None = None
    replace: bool = False
    cells: tuple[str, ...] = ()
    patches: int = 0


def tasks(connection: Connection, annotation: Annotation) -> list[Annotation]:
    """The annotation in pieces of whole cells, neighbours together, of about PATCHES_PER_TASK patches."""
    pieces: list[Annotation] = []
    for cell, patches in connection.execute(
        'select cell, patches from eo.unannotated_cells(%s, %s, "replace" => %s) order by cell',
        (list_or_none(annotation.what), annotation.source, annotation.replace),
    ):
        if pieces and pieces[-1].patches < PATCHES_PER_TASK:
            last = pieces.pop()
            pieces.append(replace(last, cells=(*last.cells, cell), patches=last.patches + patches))
        else:
            pieces.append(replace(annotation, cells=(cell,), patches=patches))
    return pieces


def annotate_cells(annotation: Annotation) -> int:
    """Annotate the patches of some cells; return how many were changed. It commits as it goes: what is done, stays."""
    with connect(autocommit=True) as connection:
        return call_annotate(connection, annotation)


def call_annotate(connection: Connection, annotation: Annotation) -> int:
    """Call eo.annotate; return how many patches were changed."""
    row = connection.execute(
        "call eo.annotate(what => %s, rule => %s, minimal_overlap => %s::real, source => %s, cells => %s,"
        ' "replace" => %s)',
        (
            list_or_none(annotation.what),
            annotation.rule,
            annotation.minimal_overlap,
            annotation.source,
            list(annotation.cells),
            annotation.replace,
        ),
    ).fetchone()
    assert row is not None
    return int(row[0])


def list_or_none(names: tuple[str, ...] | None) -> list[str] | None:
    """The names for an argument of type text[]."""
    return None if names is None else list(names)


def annotate_archive(annotation: Annotation, engine: Engine) -> tuple[int, int]:
    """Annotate the patches of the archive that lack it; return how many were visited and how many changed."""
    with connect(autocommit=True) as connection:
        # Without cells: eo.annotate says what is wrong with the arguments, or missing.
        call_annotate(connection, annotation)
        pieces = tasks(connection, annotation)
    visited = changed = 0
    with progress(range(0), "annotate", "patches", sum(piece.patches for piece in pieces)) as bar:
        for piece, result in run_tasks(annotate_cells, pieces, engine):
            if isinstance(result, PgearthError):
                raise result
            visited += piece.patches
            changed += result
            bar.update(piece.patches)
    return visited, changed
