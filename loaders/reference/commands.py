"""`pgearth load nomenclature`, `load corine`, `load nuts` and `pgearth annotate`."""

from __future__ import annotations

from pathlib import Path

import click

from pgearth.loaders.option_types import Number
from pgearth.loaders.reference.annotate import RULES, Annotation, annotate_archive
from pgearth.loaders.reference.corine import load_corine
from pgearth.loaders.reference.editions import stale_annotation
from pgearth.loaders.reference.nomenclature import load_nomenclature
from pgearth.loaders.reference.nuts import load_nuts
from pgearth.loaders.server.connection import connect
from pgearth.loaders.work.options import engine_options
from pgearth.loaders.work.task import Engine


@click.command()
def nomenclature() -> None:
    """Load the nomenclatures: CORINE Land Cover, BigEarthNet, Sentinel-2 scene classes, NLCD."""
    with connect(autocommit=True) as connection:
        click.echo(f"{load_nomenclature(connection)} labels are in the archive.")


@click.command()
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@click.option("--layer", help="Layer to load, where several could be meant.")
@click.option("--code-field", help="Field with the class code, where it is not named as in the official packages.")
@click.option("--edition", help="Year of the land cover, where the names of file and fields do not tell it.")
@click.option("--replace", is_flag=True, help="Put it in place of all polygons that were loaded, of whatever edition.")
def corine(file: Path, layer: str | None, code_field: str | None, edition: str | None, replace: bool) -> None:
    """Load CORINE Land Cover polygons from a vector FILE in any reference system: one edition, in one file or several.

    Where files overlap, what is in the archive stays, and the rest is added.
    """
    with connect(autocommit=True) as connection:
        counts = load_corine(connection, file, layer, code_field, edition, replace)
        stale = stale_annotation(connection, "corine") if replace else None
    click.echo(
        f"{counts['polygons']} polygons loaded, {counts['repaired']} repaired, {counts['dropped']} without area and"
        f" {counts['unlabelled']} unlabelled skipped, {counts['overlapping']} overlapping others cut or left out;"
        f" {counts['skipped']} layers skipped as loaded before;"
        f" {counts['pieces']} pieces derived."
    )
    if stale:
        click.echo(stale)


@click.command()
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@click.option("--layer", help="Layer to load, where several could be meant.")
@click.option("--edition", help="Its year, where the file's name does not tell it.")
@click.option("--replace", is_flag=True, help="Put it in place of all places that were loaded, of whatever edition.")
def nuts(file: Path, layer: str | None, edition: str | None, replace: bool) -> None:
    """Load NUTS units from a vector FILE in any reference system: one edition, in one file or several."""
    with connect(autocommit=True) as connection:
        counts = load_nuts(connection, file, layer, edition, replace)
        stale = stale_annotation(connection, "nuts") if replace else None
    click.echo(
        f"{counts['places']} places loaded, {counts['repaired']} repaired, {counts['dropped']} without area skipped;"
        f" {counts['skipped']} layers skipped as loaded before; {counts['pieces']} pieces derived."
    )
    if stale:
        click.echo(stale)


@click.command()
@click.option("--land-cover", is_flag=True, help="Labels and their shares, from CORINE.")
@click.option("--country", is_flag=True, help="Countries and places, from NUTS.")
@click.option("--scene-classes", is_flag=True, help="Scene classes, clouds and snow, from stored SCL bands.")
@click.option(
    "--rule",
    type=click.Choice(RULES),
    default="overlap",
    show_default=True,
    help="Which classes are labels: those that share area with the patch, or BigEarthNet v2's pixels of 10 m.",
)
@click.option(
    "--minimal-overlap",
    type=Number(0, 1),
    default=0.0,
    help="With --rule overlap: the share of the patch that a class must cover.",
)
@click.option("--source", help="Only patches of this source.")
@click.option("--replace", "anew", is_flag=True, help="Also patches that are annotated already.")
@engine_options
def annotate(
    land_cover: bool,
    country: bool,
    scene_classes: bool,
    rule: str,
    minimal_overlap: float,
    source: str | None,
    anew: bool,
    engine: Engine,
) -> None:
    """Annotate the patches that are not yet, with all there is data for or with what is named.

    It may be interrupted and run again: patches that are done are not read again.
    """
    chosen = {"land_cover": land_cover, "country": country, "scene_classes": scene_classes}
    what = tuple(name for name, is_chosen in chosen.items() if is_chosen) or None
    visited, changed = annotate_archive(Annotation(what, rule, minimal_overlap, source, anew), engine)
    click.echo(f"{visited:,} patches visited, {changed:,} changed.")
