"""The queries that the demo shows: the SQL as one would type it in psql."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any

from psycopg import Connection

EUROSAT_BANDS = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A"]


@dataclass(frozen=True)
class Query:
    """A query of the demo: the SQL as one would type it in psql, with psql's variables as `parameters`."""

    title: str
    sql: str
    parameters: dict[str, Any] = field(default_factory=dict)
    note: str = ""


EXAMPLE = """select s.rank, s.name, s.distance, p.sensing_time::date as date
from eo.similar(:'patch', max_results => 6) s
join eo.patch p using (patch_id, cell)
order by s.rank;"""
LEARNED_EXAMPLE = """select rank, name, distance
from eo.similar(:'patch', max_results => 5, encoder => 'milan');"""
EXAMPLES = """select rank, name, round(distance::numeric, 3) as distance
from eo.similar_to_vector(eo.example_vector(:'positives', :'negatives'), max_results => 5, exclude => :'positives');"""
SEGMENTS = """select rank, name, distance
from eo.similar_segments(:'patch', max_results => 5)
order by rank;"""
CHANGE = """select rank, before_name, after_name, round(distance::numeric, 3) as distance
from eo.similar_change(:'before', :'after', max_results => 3)
order by rank;"""
RASTER_LAYER = """select 'eo_layers.' || eo.make_raster_layer(product.name) as raster_layer
from eo.product
join eo.patch p using (product_id)
where p.name = :'patch';"""
AT_LEAST = """select patch_id, name, sensing_time::date as date, countries, split
from eo.search(eo.filter(labels => :'labels', label_match => 'at_least', seasons => :'seasons'), max_results => 5);"""
STATISTICS = """select name, patches, round(100 * fraction::numeric, 1) as percent, color
from eo.label_statistics(eo.filter(labels => :'labels', label_match => 'at_least', seasons => :'seasons'))
limit 8;"""
ANNOTATION = """select p.name,
       string_agg(round(100 * f.fraction::numeric, 1) || ' % ' || l.name, ', ' order by f.fraction desc) as land_cover
from eo.patch p, unnest(p.label_ids, p.label_fraction) as f (label_id, fraction)
join eo.label l using (label_id)
where p.name in (:'first', :'second')
group by p.name;"""
AGREEMENT = """select source_country as catalogue, count(*) as patches,
       round(100.0 * avg((country_codes[1] = source_country)::integer), 2) as "same country, %",
       round(100.0 * avg((source_country = any (country_codes))::integer), 2) as "among countries, %"
from eo.patch
where source = 'bigearthnet-v2'
group by rollup (source_country)
order by 1;"""

LEARNED = "The same by a learned hash function: a small MiLaN, trained just now on the labels of a made-up landscape"


def sample_queries(image: bytes) -> list[Query]:
    """The demo's queries on the sample data."""
    labels = {"labels": ["Coniferous forest", "Inland waters"], "seasons": ["autumn"]}
    scene = "S2B_MSIL2A_20200223T032739_N9999_R018_T48QUE_20230924T183543"
    return [
        Query(
            "Query by example: the patches most like a patch of a Sentinel-2 scene in Indochina",
            EXAMPLE,
            {"patch": f"{scene}_120px_3_4"},
        ),
        Query(LEARNED, LEARNED_EXAMPLE, {"patch": f"{scene}_120px_3_4"}),
        Query(
            "Query by an uploaded image: a EuroSAT GeoTIFF (annual crop) that is not in the archive",
            """select rank, name, distance
from eo.similar_to_image(decode(:'image', 'base64'), bands => :'bands', max_results => 5);""",
            {"image": base64.b64encode(image).decode(), "bands": EUROSAT_BANDS},
            "psql reads a file into a variable with: \\set image `base64 -w0 FILE`",
        ),
        Query(
            "Query by several examples: like two patches of that scene, unlike a third, by the distance of vectors",
            EXAMPLES,
            {"positives": [f"{scene}_120px_3_4", f"{scene}_120px_4_4"], "negatives": [f"{scene}_120px_2_2"]},
        ),
        Query(
            "Query by segments: patches whose quadrants are like those of that patch, wherever they lie",
            SEGMENTS,
            {"patch": f"{scene}_120px_3_4"},
        ),
        Query(
            "Query by change: which places changed most like this one, in Punjab from June to August?",
            CHANGE,
            {
                "before": "S2B_MSIL2A_20200604T054639_N0214_R048_T43RCP_20200604T094332_120px_0_0",
                "after": "S2B_MSIL2A_20200813T054639_N0214_R048_T43RCP_20200813T083230_120px_0_0",
            },
        ),
        Query(
            "A raster layer of the scene, which QGIS opens as one picture",
            RASTER_LAYER,
            {"patch": f"{scene}_120px_3_4"},
        ),
        Query("Label search: at least conifers and lakes, in autumn", AT_LEAST, labels),
        Query("Label statistics of all patches found so", STATISTICS, labels),
        Query(
            "Land cover from CORINE: shares of the area of two patch footprints",
            ANNOTATION,
            {"first": "Muenster_8_9", "second": "Lanjaron_4_7"},
        ),
        Query(
            "Country of each catalogue patch from NUTS 2021, against the catalogue's own",
            AGREEMENT,
            note="The catalogue took the nearest of ten country shapes, so it has no neighbours of these ten; "
            "NUTS 2021 has no Kosovo, whose patches (XK) keep the catalogue's code unless they reach into Serbia.",
        ),
    ]


def synthetic_queries(connection: Connection) -> list[Query]:
    """The demo's queries on a synthetic archive."""
    names = [
        name
        for (name,) in connection.execute(
            "select name from eo.patch where source = 'synthetic' and label_ids is not null order by patch_id limit 3"
        )
    ]
    pairs = connection.execute("select before_name, after_name from eo.change order by before_patch_id limit 1")
    labels = {"labels": ["clc:3"], "seasons": ["summer"]}
    return [
        Query("Query by example", EXAMPLE, {"patch": names[0]}),
        Query(LEARNED, LEARNED_EXAMPLE, {"patch": names[0]}),
        Query(
            "Query by vector: the same patch, by the distance of embeddings",
            """select rank, name, round(distance::numeric, 3) as distance
from eo.similar_to_vector(
    (select embedding from eo.encode(array(select patch_id from eo.patch where name = :'patch'))),
    max_results => 5);""",
            {"patch": names[0]},
        ),
        Query(
            "Query by several examples: like two patches, unlike a third",
            EXAMPLES,
            {"positives": names[:2], "negatives": names[2:]},
        ),
        Query("Query by segments: patches whose quadrants are like those of that patch", SEGMENTS, {"patch": names[0]}),
        *(
            Query("Query by change: places that changed most like this one", CHANGE, {"before": before, "after": after})
            for before, after in pairs
        ),
        Query("A raster layer of one season, which QGIS opens as one picture", RASTER_LAYER, {"patch": names[0]}),
        Query("Label search: at least forests or semi-natural areas, in summer", AT_LEAST, labels),
        Query("Label statistics of all patches found so", STATISTICS, labels),
        Query("Land cover: shares of the area of two patches", ANNOTATION, {"first": names[0], "second": names[1]}),
    ]
