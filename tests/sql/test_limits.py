"""Calls that would take too much memory are refused, and calls that take long can be cancelled."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import numpy as np
import psycopg
import pytest
import tifffile
from onnx import TensorProto, helper, numpy_helper
from psycopg import errors

from pgearth.loaders.archive.write import Patch, Product, patch_raster, write_patches, write_products
from pgearth.loaders.datasets.bigearthnet.images import load_bigearthnet
from pgearth.loaders.models.encode import encode_archive
from pgearth.pyfuncs.models import spectral
from pgearth.pyfuncs.pixels.rasters import Raster
from tests.hostile import grey, tiff, zeros
from tests.waiting import wait_for

BANDS = list(spectral.BANDS)


@pytest.fixture(scope="module")
def encoded(module_archive: psycopg.Connection, sample: Path) -> psycopg.Connection:
    load_bigearthnet(module_archive, sample / "bigearthnet-v1")
    with psycopg.connect(module_archive.info.dsn, autocommit=True) as reading:
        encode_archive(module_archive, reading, segments="slic:9")
    return module_archive


def largest_image() -> bytes:
    """An image of as many pixels as are allowed, of noise: 12 bands of 1,150 x 1,150."""
    noise = np.random.default_rng(0).integers(100, 9000, (12, 1150, 1150)).astype(np.uint16)
    file = io.BytesIO()
    tifffile.imwrite(file, noise, photometric="minisblack", planarconfig="separate", compression="zlib", metadata=None)
    return file.getvalue()


def test_images_that_are_too_large(encoded: psycopg.Connection) -> None:
    deep = tiff([{**grey(4000, 4000), 32997: 150}], zeros(1 << 20))
    assert len(deep) < 20_000
    for call in ("eo.encode_image(%s)", "eo.similar_to_image(%s)", "eo.segment_codes(%s)"):
        with pytest.raises(errors.ProgramLimitExceeded, match=r"150 deep, is too large: 2,400,000,000") as refused:
            encoded.execute(f"select {call}".encode(), (deep,))  # type: ignore[arg-type]
        assert "pgearth.max_image_pixels" in str(refused.value.diag.message_hint)


RASTERS = {
    "one": "array[st_addband(st_makeemptyraster(1200, 1200, 0, 0, 1), array_agg(row(n, '16BUI', 500, null)::addbandarg))]",
    "together": "array_agg(st_addband(st_makeemptyraster(1200, 1200, 0, 0, 1), '16BUI'::text, 500, null))",
    "a line and a column": "array_agg(st_addband(st_makeemptyraster(case when n = 8 then 1 else 60000 end,"
    " case when n = 8 then 60000 else 1 end, 0, 0, 1), '16BUI'::text, 500, null))",
}  # fmt: skip


@pytest.mark.parametrize("kind", RASTERS)
def test_rasters_that_are_too_large(kind: str, encoded: psycopg.Connection) -> None:
    with pytest.raises(errors.ProgramLimitExceeded, match="the image is too large") as refused:
        encoded.execute(f"select eo.encode({RASTERS[kind]}) from generate_series(1, 12) n".encode())
    assert "pgearth.max_image_pixels" in str(refused.value.diag.message_hint)


def test_null_among_rasters(encoded: psycopg.Connection) -> None:
    with pytest.raises(errors.NullValueNotAllowed, match="raster 2 is null") as refused:
        encoded.execute("select eo.encode(array[(select rast from eo.patch_raster limit 1), null])")
    assert refused.value.diag.message_hint


def test_the_limit_is_a_setting(encoded: psycopg.Connection) -> None:
    call = "select eo.encode(array_agg(st_addband(st_makeemptyraster(40, 40, 0, 0, 1), '16BUI'::text, 500, null))) from generate_series(1, 12)"
    for limit in ("19199", "many", "0"):
        with encoded.transaction(force_rollback=True):
            encoded.execute("select set_config('pgearth.max_image_pixels', %s, true)", (limit,))
            with pytest.raises(psycopg.Error) as refused, encoded.transaction():
                encoded.execute(call.encode())
            assert refused.value.sqlstate == ("54000" if limit == "19199" else "22023")
            assert refused.value.diag.message_hint
    with encoded.transaction(force_rollback=True):
        encoded.execute("set local pgearth.max_image_pixels = 19200")
        assert encoded.execute(call.encode()).fetchone() is not None


def test_pictures_that_are_too_large(encoded: psycopg.Connection) -> None:
    name, patch_id = (
        encoded.execute(
            "select name, patch_id from eo.patch where name like 'S2%' order by patch_id limit 1"
        ).fetchone()
        or ()
    )
    with encoded.transaction(force_rollback=True):
        encoded.execute("set local pgearth.max_image_pixels = 43200")  # three bands of 120 x 120
        assert encoded.execute("select eo.contact_sheet(array[%s]::bigint[])", (patch_id,)).fetchone()
        for call, what in (
            ("eo.rgb(%(name)s)", "the patch"),
            ("eo.contact_sheet(array[%(id)s, %(id)s]::bigint[])", "a contact sheet of 2 patches"),
            ("eo.encode(array[%(id)s]::bigint[])", "a patch"),
        ):
            with pytest.raises(errors.ProgramLimitExceeded, match=what), encoded.transaction():
                encoded.execute(f"select {call}".encode(), {"name": name, "id": patch_id})


def test_larger_patches_are_encoded_fewer_at_a_time(encoded: psycopg.Connection) -> None:
    """The same vectors, whatever is beside them."""
    rows = encoded.execute("select patch_id, embedding from eo.embedding order by 1").fetchall()
    with encoded.transaction(force_rollback=True):
        add_large_patches(encoded, 2, 300)
        large = [row[0] for row in encoded.execute("select patch_id from eo.patch where source = 'large' order by 1")]
        mixed = [rows[0][0], large[0], *(row[0] for row in rows), large[1], *large * 8]
        found = encoded.execute("select * from eo.encode(%s)", (mixed,)).fetchall()
        alone = encoded.execute("select embedding from eo.encode(%s)", (large,)).fetchall()
    assert [patch_id for patch_id, _ in found] == mixed
    np.testing.assert_array_equal(found[1][1].to_numpy(), alone[0][0].to_numpy())
    np.testing.assert_array_equal(found[-1][1].to_numpy(), alone[1][0].to_numpy())
    for (_, stored), (_, again) in zip(rows, found[2 : 2 + len(rows)], strict=True):
        np.testing.assert_array_equal(stored.to_numpy(), again.to_numpy())


def add_large_patches(connection: psycopg.Connection, count: int, side: int) -> None:
    """Store patches of noise in all bands, side x side pixels of 10 m."""
    from datetime import UTC, datetime

    start = datetime(2020, 6, 1, tzinfo=UTC)
    noise = np.random.default_rng(1)

    def patches() -> Iterator[Patch]:
        for number in range(count):
            west, north = 500_000.0 + 10 * side * number, 5_000_000.0
            pixels = tuple(noise.integers(100, 9000, (12, side, side)).astype(np.uint16))
            raster = Raster(pixels, (10.0, -10.0, west, north, 0.0, 0.0), 32633, (0,) * 12)
            yield Patch(
                f"large-{number}", "large", "sentinel-2a", start, 32633, west, north - 10 * side, west + 10 * side, north,
                rasters=[patch_raster(10, BANDS, raster)],
            )  # fmt: skip

    with connection.transaction():
        write_products(connection, [Product("large", "sentinel-2a", "L2A", start)])
        write_patches(connection, "large", patches())


# What takes long, with inputs that are allowed: of each kind of PL/Python function one. {image} is the largest image.
LONG = {
    "encode": "select count(*) from eo.encode(array(select p.patch_id from eo.patch p, generate_series(1, 3000) where p.name like 'S2%%'))",
    "encode rasters": "select eo.encode(array_agg(st_addband(st_makeemptyraster(1150, 1150, 0, 0, 1), '16BUI'::text, 500 + n, null))) from generate_series(1, 12) n",
    "encode a large patch": "select count(*) from eo.encode(array(select p.patch_id from eo.patch p, generate_series(1, 200) where p.name like 'large%%'))",
    "encode an image": "select eo.encode_image(%(image)s, bands => %(bands)s)",
    "similar to an image": "select count(*) from eo.similar_to_image(%(image)s, bands => %(bands)s)",
    "segments of an image": "select eo.segment_codes(%(image)s, bands => %(bands)s)",
    "picture": "select count(eo.rgb(p.name)) from eo.patch p, generate_series(1, 2000) n where p.name like 'large%%'",
    "contact sheet": "select count(eo.contact_sheet(ids)) from (select array(select p.patch_id from eo.patch p, generate_series(1, 16) where p.name like 'S2%%') as ids from generate_series(1, 500)) s",
    "codes packed": "do $$begin for n in 1..2000 loop perform eo.build_code_index(); end loop; end$$",
    "hash": "select count(eo.hash(e.embedding)) from eo.embedding e, generate_series(1, 20000)",
    "search by codes": "select count(*) from generate_series(1, 5000) n, eo.patch p, eo.similar(p.name, max_results => 3 + n %% 2) s where p.name like 'S2%%'",
    "retrieval metrics": "select count(m) from generate_series(1, 5000) n, eo.retrieval_metrics('lsh', seed => n) m",
    "code statistics": "select count(s) from generate_series(1, 5000) n, eo.code_statistics(patches => eo.filter(to_time => timestamptz '2030-01-01' + n * interval '1 day')) s",
}  # fmt: skip


@pytest.fixture(scope="module")
def large(encoded: psycopg.Connection) -> psycopg.Connection:
    add_large_patches(encoded, 1, 1000)
    return encoded


@pytest.mark.parametrize("kind", LONG)
def test_calls_that_take_long_end_at_the_time_limit(kind: str, large: psycopg.Connection) -> None:
    parameters = {"image": IMAGE, "bands": BANDS} if "%(image)s" in LONG[kind] else {}
    with large.transaction(force_rollback=True):
        large.execute("set local statement_timeout = 100")
        with pytest.raises(errors.QueryCanceled) as cancelled, large.transaction():
            large.execute(LONG[kind].encode(), parameters)
        assert cancelled.value.sqlstate == "57014"
    assert large.execute("select 1").fetchone() == (1,)


@pytest.mark.parametrize("kind", ["encode an image", "segments of an image", "encode", "retrieval metrics"])
def test_calls_that_take_long_can_be_cancelled(kind: str, large: psycopg.Connection) -> None:
    parameters = {"image": IMAGE, "bands": BANDS} if "%(image)s" in LONG[kind] else {}
    ended = threading.Event()

    def cancel() -> None:
        while not ended.wait(0.1):  # one that comes before the statement is for nothing
            large.cancel_safe()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(errors.QueryCanceled) as cancelled:
        large.execute(LONG[kind].encode(), parameters)
    ended.set()
    canceller.join()
    assert cancelled.value.sqlstate == "57014"


def test_a_session_that_ends_while_its_work_goes_on(large: psycopg.Connection) -> None:
    """Its process ends, too: what is left of the work is waited for."""
    for kind in ("code statistics", "encode an image", "segments of an image"):
        parameters = {"image": IMAGE, "bands": BANDS} if "%(image)s" in LONG[kind] else {}
        with psycopg.connect(large.info.dsn, autocommit=True) as connection:
            connection.execute("set statement_timeout = 600")
            pid = connection.info.backend_pid
            with pytest.raises(errors.QueryCanceled):
                connection.execute(LONG[kind].encode(), parameters)
        deadline = time.monotonic() + 60
        while large.execute("select from pg_stat_activity where pid = %s", (pid,)).fetchone() or alive(pid):
            assert time.monotonic() < deadline, f"process {pid} does not end"
            time.sleep(0.05)


def endless_model() -> bytes:
    """An ONNX model whose loop goes round 2^62 times."""
    value, make = helper.make_tensor_value_info, helper.make_node
    body = helper.make_graph(
        [make("Identity", ["going"], ["on"]), make("Identity", ["a"], ["b"])],
        "body",
        [value("i", TensorProto.INT64, []), value("going", TensorProto.BOOL, []), value("a", TensorProto.FLOAT, None)],
        [value("on", TensorProto.BOOL, []), value("b", TensorProto.FLOAT, None)],
    )
    graph = helper.make_graph(
        [
            make("ReduceMean", ["x"], ["mean"], axes=[2, 3], keepdims=0),
            make("Loop", ["times", "true", "mean"], ["y"], body=body),
        ],
        "graph",
        [value("x", TensorProto.FLOAT, ["n", 2, 8, 8])],
        [value("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(np.array(1 << 62), "times"), numpy_helper.from_array(np.array(True), "true")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return bytes(model.SerializeToString())


def test_a_model_without_end_is_ended(large: psycopg.Connection) -> None:
    """By statement_timeout, by a cancel, and by pg_terminate_backend, however few the pixels."""
    large.execute(
        "select eo.register_encoder('endless', null, 'onnx', '{B02,B03}', %s, dimension => 2, input_size => 8,"
        """ normalisation => '{"mean": [0, 0], "std": [1, 1]}')""",
        (endless_model(),),
    )
    encode = """
        select eo.encode(array[st_addband(st_makeemptyraster(8, 8, 0, 0, 1),
               array[row(1, '16BUI', 500, null), row(2, '16BUI', 500, null)]::addbandarg[])], 'endless')
    """
    for how in ("statement_timeout", "pg_cancel_backend", "pg_terminate_backend"):
        with psycopg.connect(large.info.dsn, autocommit=True) as connection:
            pid = connection.info.backend_pid
            if how == "statement_timeout":
                connection.execute("set statement_timeout = 300")
            else:
                Thread(target=end_when_active, args=(large.info.dsn, pid, how), daemon=True).start()
            with pytest.raises((errors.QueryCanceled, errors.AdminShutdown)):
                connection.execute(encode)
        wait_for(lambda pid=pid: not alive(pid))  # type: ignore[misc]


def end_when_active(dsn: str, pid: int, how: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        wait_for(
            lambda: connection.execute(
                "select 1 from pg_stat_activity where pid = %s and state = 'active' and query ~ 'endless'", (pid,)
            ).fetchone()
        )
        time.sleep(0.3)
        connection.execute(f"select {how}(%s)".encode(), (pid,))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def test_the_largest_image_is_still_encoded(encoded: psycopg.Connection) -> None:
    with encoded.transaction():
        encoded.execute("set local statement_timeout = 0")
        row = encoded.execute("select vector_dims(eo.encode_image(%s, bands => %s))", (IMAGE, BANDS)).fetchone()
    assert row == (spectral.DIMENSION,)


IMAGE = largest_image()
