"""`pgearth encode`, `pgearth index` and `pgearth encoder add`, `list` and `retire`."""

from __future__ import annotations

from pathlib import Path

import click

from pgearth.loaders.models.code_index import build_code_index, without_codes
from pgearth.loaders.models.encode import encode_archive
from pgearth.loaders.models.pending import PATCHES_PER_TRANSACTION
from pgearth.loaders.models.vector_index import build_vector_index, without_vectors
from pgearth.loaders.models.versions import add_onnx, listed_versions, retire_version, version_name
from pgearth.loaders.option_types import Names, Number, Numbers
from pgearth.loaders.server.connection import connect
from pgearth.pyfuncs.models.encoder import BATCH_SIZE
from pgearth.pyfuncs.pixels.segments import parse_segmentation


@click.command()
@click.option(
    "--encoder",
    "encoders",
    multiple=True,
    metavar="NAME[:VERSION]",
    help="Encoder or hash function, by default its newest version; may be repeated.  [default: spectral, lsh]",
)
@click.option(
    "--segments",
    metavar="METHOD:NUMBER",
    help="Also hash segments of each patch, for eo.similar_segments: grid:2, windows of a grid of 2 by 2 (quadrants);"
    " slic:9, about 9 superpixels.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1, PATCHES_PER_TRANSACTION),
    default=BATCH_SIZE,
    show_default=True,
    help="Patches that go through an encoder at once; a GPU is faster with a few hundred.",
)
def encode(encoders: tuple[str, ...], segments: str | None, batch_size: int) -> None:
    """Compute vectors by encoders and hash codes of all patches that lack them.

    Patches that lack bands of an encoder are left out. Once an encoder or hash function has gone through the whole
    archive for the first time, searches use it unless they name another one; older versions can still be named. It may
    be interrupted and run again.
    """
    if segments:
        parse_segmentation(segments, ())  # before anything is encoded
    with connect(autocommit=True) as connection, connect(autocommit=True) as reading:
        result = encode_archive(connection, reading, encoders, segments=segments, batch_size=batch_size)
    message = f"{result.embeddings:,} patches encoded, {result.codes:,} hashed"
    click.echo(message + (f", {result.segment_codes:,} segments hashed." if segments else "."))
    for name, number in result.left_out.items():
        if number:
            click.echo(f"{number:,} patches were left out, whose pixels lack some bands of {name}.")
    if result.made_current:
        click.echo(f"Searches use {', '.join(result.made_current)} from now on.")


@click.command()
@click.option("--encoder", help="Hash function, NAME or NAME:VERSION.  [default: the current one]")
def codes(encoder: str | None) -> None:
    """Pack the codes of a hash function into a file that searches map into memory.

    On a server without PL/Python, build B-trees for plain SQL instead. Searches are exact without either, or with a
    file that is out of date, only slower; `pgearth encode` does the same at its end.
    """
    with connect(autocommit=True) as connection:
        click.echo(without_codes(connection, encoder) or f"{build_code_index(connection, encoder)}.")


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


@click.command()
@click.argument("name")
@click.option(
    "--onnx",
    "file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The model: one input, images float32 (n, bands, height, width); an output (n, dimension).",
)
@click.option("--bands", required=True, type=Names(), help="Bands that it reads, in its order: B02,B03,...")
@click.option("--mean", required=True, type=Numbers(), help="Mean of each band, which is subtracted: 429.9,614.2,...")
@click.option("--std", required=True, type=Numbers(), help="Standard deviation of each band, by which is divided.")
@click.option(
    "--scale",
    type=Number(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="What stored numbers are multiplied by before: 0.0001 where mean and deviation are of reflectances.",
)
@click.option("--size", required=True, type=click.IntRange(1, 4096), help="Pixels along each side of its images.")
@click.option(
    "--units",
    type=Names(repeat=True),
    help="Units of the stored numbers, which uploaded images have to be in, of all bands or of each, comma-separated:"
    " reflectance10000, reflectance, decibels. Default: those of Sentinel-1 and 2 in an archive of these, else not"
    " declared.",
)
@click.option("--output", help="Output to take, where several are (n, dimension).")
def add(
    name: str,
    file: Path,
    bands: list[str],
    mean: list[float],
    std: list[float],
    scale: float,
    size: int,
    units: list[str] | None,
    output: str | None,
) -> None:
    """Store an ONNX model as the next version of the encoder NAME, after trying it out.

    Patches are resampled to the model's size. Pixels without data become 0 after normalisation.
    """
    with connect(autocommit=True) as connection:
        encoder = add_onnx(
            connection,
            name,
            file,
            bands,
            mean,
            std,
            size,
            scale=scale,
            output=output,
            units=units,
        )
    click.echo(
        f"{version_name(encoder)} makes vectors of {encoder.dimension:,} numbers from {len(encoder.bands)} bands."
        f" Encode the archive with it: pgearth encode --encoder {version_name(encoder)}"
    )


@click.command(name="list")
def list_versions() -> None:
    """Show all versions of encoders and hash functions, and how many patches have their vectors or codes.

    default: what searches use that name none. current: what they use of its name.
    """
    with connect(autocommit=True) as connection:
        rows = listed_versions(connection)
    lines = [("version", "kind", "architecture", "makes", "patches", "state"), *rows]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@click.command()
@click.argument("version", metavar="NAME:VERSION")
def retire(version: str) -> None:
    """Retire a version: remove its vectors or codes. Its row stays, but no search can name it any longer."""
    with connect(autocommit=True) as connection:
        removed = retire_version(connection, version)
    click.echo(f"{version} is retired; {removed:,} vectors or codes were removed.")
