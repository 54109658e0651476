"""`pgearth annotate`: the same as eo.annotate in one call, in pieces, in several processes, and after an interruption."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from click.testing import Result

import pgearth.loaders.reference.annotate
from pgearth.loaders.archive.write import Patch, Product, write_patches, write_products
from pgearth.loaders.reference.annotate import Annotation, tasks
from pgearth.loaders.reference.corine import load_corine

TIME = datetime(2018, 7, 1, tzinfo=UTC)
SIDE = 1200
QUERY = "select patch_id, label_ids, label_fraction from eo.patch order by patch_id"


@pytest.fixture(scope="module")
def annotated(module_archive: psycopg.Connection, sample: Path) -> psycopg.Connection:
    """160 patches over the land cover of Lanjaron, annotated by the procedure in one call."""
    write_products(module_archive, [Product("p", "sentinel-2a", "L2A", TIME)])
    with module_archive.transaction():
        write_patches(
            module_archive,
            "lanjaron",
            [
                Patch(f"{x}-{y}", "p", "sentinel-2a", TIME, 32630, x, y, x + SIDE, y + SIDE)
                for x in range(452_500, 464_500, SIDE)
                for y in range(4_080_500, 4_099_700, SIDE)
            ],
        )
    load_corine(module_archive, sample / "corine" / "clc2018_lanjaron_es.gpkg", "clc")
    module_archive.execute("call eo.annotate()")
    return module_archive


def forget(connection: psycopg.Connection) -> list[tuple]:
    """Take the labels from all patches; return what they were."""
    rows = connection.execute(QUERY).fetchall()
    connection.execute("update eo.patch set label_ids = null, label_fraction = null")
    return rows


def test_pieces_hold_every_cell_once(annotated: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pgearth.loaders.reference.annotate, "PATCHES_PER_TASK", 30)
    pieces = tasks(annotated, Annotation(replace=True))
    cells = [cell for piece in pieces for cell in piece.cells]
    row = annotated.execute("select array_agg(distinct cell order by cell), count(*) from eo.patch").fetchone()
    assert row == (cells, sum(piece.patches for piece in pieces))
    assert len(pieces) > 2 and all(piece.patches >= 30 for piece in pieces[:-1])


def test_in_several_processes(
    annotated: psycopg.Connection, run_pgearth: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgearth.loaders.reference.annotate, "PATCHES_PER_TASK", 60)
    expected = forget(annotated)
    labelled = sum(labels is not None for _, labels, _ in expected)
    result = run_pgearth(annotated, "annotate", "--land-cover", "--jobs", "2")
    assert result.exit_code == 0, result.output
    assert f"160 patches visited, {labelled} changed." in result.output
    assert annotated.execute(QUERY).fetchall() == expected
    # The second time only those are visited for which there is no land cover.
    result = run_pgearth(annotated, "annotate")
    assert f"{160 - labelled} patches visited, 0 changed." in result.output


def test_options_reach_the_procedure(annotated: psycopg.Connection, run_pgearth: Callable[..., Result]) -> None:
    expected = annotated.execute(QUERY).fetchall()
    result = run_pgearth(annotated, "annotate", "--source", "bigearthnet-v2", "--replace")
    assert "0 patches visited, 0 changed." in result.output
    result = run_pgearth(annotated, "annotate", "--minimal-overlap", "0.3", "--replace")
    assert "160 patches visited" in result.output
    shares = annotated.execute("select min(f) from eo.patch, unnest(label_fraction) f").fetchone()
    assert shares is not None and 0.3 <= shares[0] < 0.35
    run_pgearth(annotated, "annotate", "--replace")
    assert annotated.execute(QUERY).fetchall() == expected


def test_an_interrupted_run_goes_on(
    annotated: psycopg.Connection, run_pgearth: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgearth.loaders.reference.annotate, "PATCHES_PER_TASK", 30)
    expected = forget(annotated)
    real, calls = pgearth.loaders.reference.annotate.annotate_cells, 0

    def interrupted(piece: Annotation) -> int:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(piece)

    with monkeypatch.context() as patched:
        patched.setattr(pgearth.loaders.reference.annotate, "annotate_cells", interrupted)
        assert run_pgearth(annotated, "annotate").exit_code != 0
    row = annotated.execute("select count(label_ids) from eo.patch").fetchone()
    assert row is not None and 0 < row[0] < len(expected)
    assert run_pgearth(annotated, "annotate").exit_code == 0
    assert annotated.execute(QUERY).fetchall() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--country",), "eo.nuts is empty"),
        (("--rule", "bigearthnet-v2", "--minimal-overlap", "0.1"), "minimal_overlap cannot be 0.1"),
    ],
)
def test_what_cannot_be_done(
    annotated: psycopg.Connection, run_pgearth: Callable[..., Result], arguments: tuple[str, ...], message: str
) -> None:
    result = run_pgearth(annotated, "annotate", *arguments)
    assert isinstance(result.exception, psycopg.Error) and message in str(result.exception)
    assert result.exception.diag.message_hint
