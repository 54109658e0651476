"""The filter of patches as options of a command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from pgearth.loaders.archive.filters import parse_area, parse_time
from pgearth.loaders.option_types import KEY, Number


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command all filters as options; it takes them by the names of its arguments."""
    several: dict[str, tuple[str, str]] = {
        "--platform": ("platforms", "Such as sentinel-2a, S2A or sentinel-2."),
        "--season": ("seasons", "winter, spring, summer or autumn."),
        "--label": ("labels", "Name, CORINE code or scheme:code; an upper level means any class below it."),
        "--country": ("countries", "Name, or ISO 3166-1 code."),
        "--split": ("splits", "train, validation or test."),
        "--source": ("sources", "Such as bigearthnet-v2 or product."),
        "--scene-class": ("scene_classes", "Name or code of a Sentinel-2 scene class that is present."),
        "--cell": ("cells", "Geohash of 1 to 12 characters that holds the patch's centre."),
    }
    options = [
        click.option("--area", help="WKT, a GeoJSON file, or west,south,east,north in degrees."),
        click.option("--from", "from_time", help="Earliest time of sensing, ISO 8601; UTC if no zone is given."),
        click.option("--to", "to_time", help="Time of sensing before which."),
        *(
            click.option(option, argument, multiple=True, help=f"{text} May be repeated: any of them.")
            for option, (argument, text) in several.items()
        ),
        click.option(
            "--label-match",
            type=click.Choice(["some", "at_least", "exactly"]),
            help="Patches with some of the labels (the default), with all of them, or with all and no others.",
        ),
        click.option("--seasonal-snow/--no-seasonal-snow", default=None, help="With or without the flag."),
        click.option("--cloud-or-shadow/--no-cloud-or-shadow", default=None, help="With or without the flag."),
        click.option("--max-cloud", type=Number(0, 100), help="Cloud cover of the product, per cent."),
        click.option("--patch-id", "patch_ids", type=KEY, multiple=True, help="Only this patch. May be repeated."),
        click.option("--patch-name", "names", multiple=True, help="Only the patch of this name. May be repeated."),
        click.option("--max-results", type=KEY, help="The first so many patches by patch_id."),
        click.option("--after-patch-id", type=KEY, help="Only patches after this one by patch_id."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def parse_filters(options: Mapping[str, Any]) -> dict[str, Any]:
    """What filter_options gave a command, as arguments of eo.filter and eo.search; None where an option was not given.

    Raises PgearthError for a text that is no time or no area.
    """
    parsers = {"area": parse_area, "from_time": parse_time, "to_time": parse_time}
    filters: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, tuple):
            filters[name] = list(value) or None
        else:
            filters[name] = parsers[name](value) if value is not None and name in parsers else value
    return filters
