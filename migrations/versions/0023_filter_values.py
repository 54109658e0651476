"""A filter holds what its names mean, looked up once by its constructor: seasons, labels and scene classes."""

from alembic import op

from pgearth.migrations.sqlfiles import run_sql

revision = "0023"
down_revision = "0022"


def upgrade() -> None:
    run_sql(
        op.get_bind(),
        """
        alter type eo.filter
            alter attribute seasons type eo.season[],
            alter attribute labels type eo_internal.label_group[],
            alter attribute scene_classes type smallint[];
        alter type eo.product_filter alter attribute seasons type eo.season[];
        comment on column eo.filter.area is 'In EPSG:4326, cut at the antimeridian';
        comment on column eo.filter.labels is 'Ids of the labels that each name means, with their descendants';
        comment on column eo.filter.scene_classes is 'Ids of the scene classes';
        comment on column eo.product_filter.area is 'In EPSG:4326, cut at the antimeridian';
        comment on column eo.evaluation.queries is 'Which patches were queries: a filter, as eo.filter(jsonb) takes it';
        comment on column eo.evaluation.archive is 'Which patches were searched: a filter, as eo.filter(jsonb) takes it';
        """,
    )


def downgrade() -> None:
    run_sql(
        op.get_bind(),
        """
        alter type eo.filter
            alter attribute seasons type text[],
            alter attribute labels type text[],
            alter attribute scene_classes type text[];
        alter type eo.product_filter alter attribute seasons type text[];
        comment on column eo.filter.area is null;
        comment on column eo.filter.labels is null;
        comment on column eo.filter.scene_classes is null;
        comment on column eo.product_filter.area is null;
        comment on column eo.evaluation.queries is 'Which patches were queries: filters of eo.patches';
        comment on column eo.evaluation.archive is 'Which patches were searched: filters of eo.patches';
        delete from eo_internal.sql_file;
        """,
    )
