"""SQLAlchemy models of the archive's tables. The revisions are the truth; a test compares the two."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from geoalchemy2 import Geometry, Raster, WKBElement
from pgvector.sqlalchemy import VECTOR
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Computed,
    DateTime,
    Enum,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import BIT, DOUBLE_PRECISION, JSONB, REAL
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Base of all models."""

    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy declares it so)
        str: Text,
        int: BigInteger,
        float: DOUBLE_PRECISION,
        bool: Boolean,
        bytes: LargeBinary,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        list[str]: ARRAY(Text),
        list[int]: ARRAY(SmallInteger),
        list[float]: ARRAY(REAL),
    }


Cell = Text(collation="C")


def transformed(column: str, srid: int) -> str:
    """The expression of an index for map layers in another reference system, as the server writes it."""
    return f"(st_transform({column}, {srid})::geometry(MultiPolygon,{srid}))"


WEB_MERCATOR_FOOTPRINT = """(
CASE
    WHEN st_ymin(footprint::box3d) >= '-85.06'::numeric::double precision AND st_ymax(footprint::box3d) <= 85.06::double precision THEN st_transform(footprint, 3857)
    ELSE NULL::geometry
END::geometry(MultiPolygon,3857))"""  # noqa: E501 (alembic compares the line breaks, too)


class SchemaVersion(Base):
    """The package version whose migrations and SQL files the database has."""

    __tablename__ = "schema_version"
    __table_args__ = ({"schema": "eo_internal"},)

    singleton: Mapped[bool] = mapped_column(primary_key=True, server_default=text("true"))
    version: Mapped[str]


class SqlFileRow(Base):
    """A file of sql/ as it was last applied."""

    __tablename__ = "sql_file"
    __table_args__ = ({"schema": "eo_internal"},)

    name: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str]


class Label(Base):
    """A class of a nomenclature."""

    __tablename__ = "label"
    __table_args__ = (UniqueConstraint("scheme", "code"), {"schema": "eo"})

    label_id: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    scheme: Mapped[str]
    code: Mapped[str]
    level: Mapped[int] = mapped_column(SmallInteger)
    name: Mapped[str]
    color: Mapped[str | None]
    clc_codes: Mapped[list[str] | None]


class LabelClosure(Base):
    """A pair of labels of which the first includes the second."""

    __tablename__ = "label_closure"
    __table_args__ = (Index("label_closure_descendant_id", "descendant_id"), {"schema": "eo"})

    ancestor_id: Mapped[int] = mapped_column(ForeignKey("eo.label.label_id", ondelete="CASCADE"), primary_key=True)
    descendant_id: Mapped[int] = mapped_column(ForeignKey("eo.label.label_id", ondelete="CASCADE"), primary_key=True)


class LabelSpelling(Base):
    """An accepted spelling of a label's name."""

    __tablename__ = "label_spelling"
    __table_args__ = ({"schema": "eo"},)

    scheme: Mapped[str] = mapped_column(primary_key=True)
    spelling: Mapped[str] = mapped_column(primary_key=True)
    label_id: Mapped[int] = mapped_column(ForeignKey("eo.label.label_id", ondelete="CASCADE"))


class LabelSynonym(Base):
    """A word that people type for a label."""

    __tablename__ = "label_synonym"
    __table_args__ = ({"schema": "eo"},)

    scheme: Mapped[str]
    synonym: Mapped[str] = mapped_column(primary_key=True)
    label_id: Mapped[int] = mapped_column(ForeignKey("eo.label.label_id", ondelete="CASCADE"), primary_key=True)


class Country(Base):
    """A country of ISO 3166-1."""

    __tablename__ = "country"
    __table_args__ = (UniqueConstraint("alpha3"), UniqueConstraint("name"), {"schema": "eo"})

    code: Mapped[str] = mapped_column(primary_key=True)
    alpha3: Mapped[str]
    name: Mapped[str]


class CountryName(Base):
    """Another name of a country."""

    __tablename__ = "country_name"
    __table_args__ = ({"schema": "eo"},)

    name: Mapped[str] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(ForeignKey("eo.country.code", ondelete="CASCADE"))


class PlaceName(Base):
    """An English name of a NUTS unit."""

    __tablename__ = "place_name"
    __table_args__ = ({"schema": "eo"},)

    english_name: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)


def season_column() -> Mapped[str]:
    """The season of sensing, which the database computes."""
    return mapped_column(
        Enum("winter", "spring", "summer", "autumn", name="season", schema="eo"),
        Computed("(by sensing month and hemisphere)", persisted=True),
    )


class Product(Base):
    """A satellite product: one acquisition of one tile."""

    __tablename__ = "product"
    __table_args__ = (
        UniqueConstraint("name"),
        Index("product_footprint", "footprint", postgresql_using="gist"),
        Index("product_sensing_time", "sensing_time"),
        Index("product_tile", "mgrs_tile", "season", "cloud_cover"),
        {"schema": "eo"},
    )

    product_id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str]
    platform: Mapped[str]
    level: Mapped[str]
    sensing_time: Mapped[datetime]
    mgrs_tile: Mapped[str | None]
    cloud_cover: Mapped[float | None] = mapped_column(REAL)
    footprint: Mapped[WKBElement | None] = mapped_column(Geometry("MULTIPOLYGON", 4326, spatial_index=False))
    source_path: Mapped[str | None]
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    derived_from: Mapped[int | None] = mapped_column(ForeignKey("eo.product.product_id"))
    end_time: Mapped[datetime | None]
    processed_at: Mapped[datetime | None]
    processing_baseline: Mapped[str | None]
    relative_orbit: Mapped[int | None] = mapped_column(Integer)
    scales: Mapped[dict[str, Any] | None]
    offsets: Mapped[dict[str, Any] | None]
    bytes: Mapped[int | None]
    season: Mapped[str] = season_column()


class Patch(Base):
    """An image patch."""

    __tablename__ = "patch"
    __table_args__ = (
        UniqueConstraint("name", "source", "cell"),
        ForeignKeyConstraint(["pair_id", "cell"], ["eo.patch.patch_id", "eo.patch.cell"]),
        Index("patch_footprint", "footprint", postgresql_using="gist"),
        Index("patch_label_ids", "label_ids", postgresql_using="gin"),
        Index("patch_country_codes", "country_codes", postgresql_using="gin"),
        Index("patch_sensing_time", "sensing_time", "patch_id"),
        Index("patch_without_labels", "cell", postgresql_where=text("label_ids is null")),
        Index("patch_without_places", "cell", postgresql_where=text("nuts_ids is null")),
        Index("patch_cell_prefix", "cell", postgresql_using="spgist"),
        Index("patch_scene_class_ids", "scene_class_ids", postgresql_using="gin"),
        Index("patch_product_id", "product_id"),
        Index("patch_pair_name", "pair_name", postgresql_where=text("pair_name is not null")),
        Index("patch_footprint_3857", text(WEB_MERCATOR_FOOTPRINT), postgresql_using="gist"),
        {"schema": "eo"},
    )

    patch_id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    cell: Mapped[str] = mapped_column(Cell, primary_key=True)
    name: Mapped[str]
    source: Mapped[str]
    product_id: Mapped[int] = mapped_column(ForeignKey("eo.product.product_id"))
    platform: Mapped[str]
    sensing_time: Mapped[datetime]
    season: Mapped[str] = season_column()
    footprint: Mapped[WKBElement] = mapped_column(Geometry("MULTIPOLYGON", 4326, spatial_index=False))
    srid: Mapped[int] = mapped_column(Integer)
    west: Mapped[float]
    south: Mapped[float]
    east: Mapped[float]
    north: Mapped[float]
    tile_column: Mapped[int | None] = mapped_column(SmallInteger)
    tile_row: Mapped[int | None] = mapped_column(SmallInteger)
    label_ids: Mapped[list[int] | None]
    label_fraction: Mapped[list[float] | None]
    scene_class_ids: Mapped[list[int] | None]
    source_country: Mapped[str | None]
    country_codes: Mapped[list[str] | None]
    split: Mapped[str | None]
    seasonal_snow: Mapped[bool | None]
    cloud_or_shadow: Mapped[bool | None]
    pair_name: Mapped[str | None]
    pair_id: Mapped[int | None]
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    scene_class_fraction: Mapped[list[float] | None]
    nuts_ids: Mapped[list[str] | None]
    label_edition: Mapped[str | None]
    nuts_edition: Mapped[str | None]


def patch_reference() -> ForeignKeyConstraint:
    """Foreign key to a patch, which takes its rows along when it is deleted."""
    return ForeignKeyConstraint(["patch_id", "cell"], ["eo.patch.patch_id", "eo.patch.cell"], ondelete="CASCADE")


class PatchRaster(Base):
    """The pixels of one patch at one resolution."""

    __tablename__ = "patch_raster"
    __table_args__ = (
        patch_reference(),
        Index("patch_raster_scene_classes", "cell", postgresql_where=text("'SCL' = any (bands)")),
        {"schema": "eo", "postgresql_partition_by": "hash (cell)"},
    )

    patch_id: Mapped[int] = mapped_column(primary_key=True)
    resolution: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    cell: Mapped[str] = mapped_column(Cell, primary_key=True)
    bands: Mapped[list[str]]
    rast: Mapped[bytes] = mapped_column(Raster(spatial_index=False))
    band_min: Mapped[list[float] | None]
    band_max: Mapped[list[float] | None]
    band_mean: Mapped[list[float] | None]
    band_std: Mapped[list[float] | None]
    valid_fraction: Mapped[list[float] | None]


class Edition(Base):
    """Which edition of CORINE or of NUTS the archive holds."""

    __tablename__ = "edition"
    __table_args__ = (CheckConstraint("reference in ('corine', 'nuts')"), {"schema": "eo"})

    reference: Mapped[str] = mapped_column(primary_key=True)
    edition: Mapped[str]
    loaded_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Corine(Base):
    """A polygon of CORINE Land Cover."""

    __tablename__ = "corine"
    __table_args__ = (
        Index("corine_geom", "geom", postgresql_using="gist"),
        Index("corine_label_id", "label_id"),
        Index(
            "corine_geom_4326", text("(st_transform(geom, 4326)::geometry(MultiPolygon,4326))"), postgresql_using="gist"
        ),
        Index(
            "corine_geom_3857", text("(st_transform(geom, 3857)::geometry(MultiPolygon,3857))"), postgresql_using="gist"
        ),
        {"schema": "eo"},
    )

    corine_id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    source: Mapped[str]
    label_id: Mapped[int] = mapped_column(ForeignKey("eo.label.label_id"))
    geom: Mapped[WKBElement] = mapped_column(Geometry("MULTIPOLYGON", 3035, spatial_index=False))


class CorinePart(Base):
    """A reprojected, subdivided piece of a CORINE polygon."""

    __tablename__ = "corine_part"
    __table_args__ = (
        Index("corine_part_geom", "geom", postgresql_using="gist"),
        Index("corine_part_corine_id", "corine_id"),
        {"schema": "eo_internal", "postgresql_partition_by": "list (srid)"},
    )

    part_id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    srid: Mapped[int] = mapped_column(Integer, primary_key=True)
    corine_id: Mapped[int] = mapped_column(ForeignKey("eo.corine.corine_id", ondelete="CASCADE"))
    label_id: Mapped[int] = mapped_column(SmallInteger)
    geom: Mapped[WKBElement] = mapped_column(Geometry("POLYGON", -1, spatial_index=False))


class Nuts(Base):
    """A NUTS unit: a place."""

    __tablename__ = "nuts"
    __table_args__ = (
        UniqueConstraint("place_id"),
        Index("nuts_geom", "geom", postgresql_using="gist"),
        Index(
            "nuts_geom_3857", text("(st_transform(geom, 3857)::geometry(MultiPolygon,3857))"), postgresql_using="gist"
        ),
        {"schema": "eo"},
    )

    nuts_id: Mapped[str] = mapped_column(primary_key=True)
    level: Mapped[int] = mapped_column(SmallInteger)
    country_code: Mapped[str]
    name: Mapped[str]
    place_id: Mapped[int] = mapped_column(Integer, Identity())
    geom: Mapped[WKBElement] = mapped_column(Geometry("MULTIPOLYGON", 4326, spatial_index=False))


class NutsPart(Base):
    """A reprojected, subdivided piece of a NUTS country."""

    __tablename__ = "nuts_part"
    __table_args__ = (
        Index("nuts_part_geom", "geom", postgresql_using="gist"),
        Index("nuts_part_nuts_id", "nuts_id"),
        {"schema": "eo_internal", "postgresql_partition_by": "list (srid)"},
    )

    part_id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    srid: Mapped[int] = mapped_column(Integer, primary_key=True)
    nuts_id: Mapped[str] = mapped_column(ForeignKey("eo.nuts.nuts_id", ondelete="CASCADE"))
    level: Mapped[int] = mapped_column(SmallInteger)
    country_code: Mapped[str]
    geom: Mapped[WKBElement] = mapped_column(Geometry("POLYGON", -1, spatial_index=False))


class Encoder(Base):
    """One version of one encoder or hash function."""

    __tablename__ = "encoder"
    __table_args__ = (
        UniqueConstraint("name", "version"),
        CheckConstraint("(dimension is null) <> (bits is null)"),
        {"schema": "eo"},
    )

    encoder_id: Mapped[int] = mapped_column(SmallInteger, Identity(), primary_key=True)
    name: Mapped[str]
    version: Mapped[int] = mapped_column(Integer)
    architecture: Mapped[str]
    bands: Mapped[list[str]]
    input_size: Mapped[int | None] = mapped_column(Integer)
    normalisation: Mapped[dict[str, Any] | None]
    units: Mapped[list[str] | None]
    dimension: Mapped[int | None] = mapped_column(Integer)
    bits: Mapped[int | None] = mapped_column(Integer)
    weights: Mapped[bytes]
    weights_sha256: Mapped[str]
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("eo.encoder.encoder_id"))
    training: Mapped[dict[str, Any] | None]
    segmentation: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    current_since: Mapped[datetime | None]
    retired_at: Mapped[datetime | None]


class Evaluation(Base):
    """How well an encoder or hash function retrieves, as eo.evaluate found it."""

    __tablename__ = "evaluation"
    __table_args__ = (CheckConstraint("k > 0"), Index("evaluation_encoder_id", "encoder_id"), {"schema": "eo"})

    evaluation_id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    encoder_id: Mapped[int] = mapped_column(ForeignKey("eo.encoder.encoder_id"))
    k: Mapped[int] = mapped_column(Integer)
    relevance: Mapped[str]
    scheme: Mapped[str]
    level: Mapped[int | None] = mapped_column(Integer)
    queries: Mapped[dict[str, Any]]
    archive: Mapped[dict[str, Any]]
    max_queries: Mapped[int | None] = mapped_column(Integer)
    seed: Mapped[int] = mapped_column(Integer)
    metrics: Mapped[dict[str, Any]]
    evaluated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Embedding(Base):
    """One patch's vector under one encoder."""

    __tablename__ = "embedding"
    __table_args__ = (patch_reference(), {"schema": "eo", "postgresql_partition_by": "list (encoder_id)"})

    patch_id: Mapped[int] = mapped_column(primary_key=True)
    encoder_id: Mapped[int] = mapped_column(ForeignKey("eo.encoder.encoder_id"), primary_key=True)
    cell: Mapped[str] = mapped_column(Cell, primary_key=True)
    embedding: Mapped[Any] = mapped_column(VECTOR())


class Bucket(Base):
    """A distinct hash code of one hash function."""

    __tablename__ = "bucket"
    __table_args__ = (UniqueConstraint("code", "encoder_id"), {"schema": "eo"})

    encoder_id: Mapped[int] = mapped_column(ForeignKey("eo.encoder.encoder_id"), primary_key=True)
    bucket_no: Mapped[int] = mapped_column(Integer, primary_key=True)
    code: Mapped[str] = mapped_column(BIT(varying=True))


class CodeIndex(Base):
    """The packed codes of one hash function."""

    __tablename__ = "code_index"
    __table_args__ = (CheckConstraint("buckets > 0"), {"schema": "eo"})

    encoder_id: Mapped[int] = mapped_column(ForeignKey("eo.encoder.encoder_id"), primary_key=True)
    version: Mapped[UUID] = mapped_column()
    buckets: Mapped[int] = mapped_column(Integer)
    patches: Mapped[int] = mapped_column()
    bytes: Mapped[int] = mapped_column()
    codes_guard: Mapped[str | None]
    patches_guard: Mapped[str | None]
    built_at: Mapped[datetime] = mapped_column(server_default=func.now())


class PatchChange(Base):
    """A transaction that stored or changed patches or their codes."""

    __tablename__ = "patch_change"
    __table_args__ = (Index("patch_change_changed_by", "changed_by"), {"schema": "eo_internal"})

    change_id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    changed_by: Mapped[int] = mapped_column(server_default=text("pg_current_xact_id()::text::bigint"))
    changed_at: Mapped[datetime] = mapped_column(server_default=func.now())
    seen_by: Mapped[list[int]] = mapped_column(server_default=text("'{}'"))


class PatchBucket(Base):
    """The bucket a patch, or a segment of it, is in."""

    __tablename__ = "patch_bucket"
    __table_args__ = (
        patch_reference(),
        ForeignKeyConstraint(["encoder_id", "bucket_no"], ["eo.bucket.encoder_id", "eo.bucket.bucket_no"]),
        Index("patch_bucket_bucket_no", "encoder_id", "bucket_no", "segment", "patch_id", "cell"),
        {"schema": "eo"},
    )

    patch_id: Mapped[int] = mapped_column(primary_key=True)
    segment: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    encoder_id: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    cell: Mapped[str] = mapped_column(Cell, primary_key=True)
    bucket_no: Mapped[int] = mapped_column(Integer)


class Collection(Base):
    """A named set of patches that belongs to a role."""

    __tablename__ = "collection"
    __table_args__ = (UniqueConstraint("owner", "name"), {"schema": "eo"})

    collection_id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    owner: Mapped[str] = mapped_column(server_default=func.current_user())
    name: Mapped[str]
    description: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class CollectionPatch(Base):
    """A patch in a collection."""

    __tablename__ = "collection_patch"
    __table_args__ = (
        patch_reference(),
        Index("collection_patch_patch_id", "patch_id", "cell"),
        {"schema": "eo"},
    )

    collection_id: Mapped[int] = mapped_column(
        ForeignKey("eo.collection.collection_id", ondelete="CASCADE"), primary_key=True
    )
    patch_id: Mapped[int] = mapped_column(primary_key=True)
    cell: Mapped[str] = mapped_column(Cell, primary_key=True)
    added_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Feedback(Base):
    """What a user wrote to the keepers of the archive."""

    __tablename__ = "feedback"
    __table_args__ = ({"schema": "eo"},)

    feedback_id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    author: Mapped[str] = mapped_column(server_default=func.current_user())
    message: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Load(Base):
    """A row of the ledger of loads."""

    __tablename__ = "load"
    __table_args__ = (UniqueConstraint("loader", "source"), {"schema": "eo"})

    load_id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    loader: Mapped[str]
    source: Mapped[str]
    checksum: Mapped[str]
    state: Mapped[str]
    rows: Mapped[int] = mapped_column(server_default=text("0"))
    details: Mapped[dict[str, Any] | None]
    error: Mapped[str | None]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]
