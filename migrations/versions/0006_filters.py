"""Search functions of the older filter (13 arguments) and their helpers, dropped; indexes for the new filters."""

from alembic import op

from pgearth.migrations.sqlfiles import run_sql

revision = "0006"
down_revision = "0005"

FILTER = "public.geometry, timestamptz, timestamptz, text[], text[], text[], eo.label_match, text[], text[], text[], boolean, boolean, real"
NEW = ", text[], text[], bigint[]"
# Arguments before and after those of the filter.
FUNCTIONS = {
    "patches": ("", ""),
    "search": ("", ", integer, bigint"),
    "label_statistics": ("", ""),
    "count_patches": ("boolean, ", ""),
    "patch_statistics": ("text, ", ""),
    "similar_to_code": ("bit varying, integer, text, ", ""),
    "within_distance": ("bit varying, integer, text, ", ""),
    "similar": ("text, integer, text, ", ""),
    "similar_to_image": ("bytea, integer, text, text[], ", ""),
    "similar_to_vector": ("public.vector, integer, text, ", ""),
    "similar_to_examples": ("text[], text[], integer, text, ", ""),
}


def drop_functions(filter_arguments: str) -> str:
    """Statements that drop the search functions of one filter."""
    return "\n".join(
        f"drop function if exists eo.{name}({before}{filter_arguments}{after});"
        for name, (before, after) in FUNCTIONS.items()
    )


NEW_HELPERS = """
drop function eo_internal.packed_conditions;
drop function eo.circle(public.geometry, double precision);
drop function eo.rectangle(double precision, double precision, double precision, double precision);
drop function eo.label_members(text[]);
drop function eo_internal.label_groups(text[], text);
drop function eo_internal.label_ids(text[], text);
drop function eo_internal.label_members(text, text);
drop function eo_internal.seasons(text[]);
drop function eo_internal.relation(public.geometry, public.geometry);
drop function eo_internal.inner_box(public.geometry);
drop function eo_internal.cell_prefixes(text[], integer);
drop function eo_internal.cells_of_part(public.geometry, integer);
drop function eo_internal.search_area(public.geometry);
drop function eo_internal.unwound_area(public.geometry);
drop function eo_internal.unwound_ring(public.geometry, boolean);
drop function eo_internal.unwound_line(public.geometry);
drop function eo_internal.wrapped_area(public.geometry);
drop function eo_internal.check_inlined();
""".replace("drop function", "drop function if exists")


def upgrade() -> None:
    run_sql(op.get_bind(), drop_functions(FILTER))
    run_sql(
        op.get_bind(),
        """
        drop function if exists eo_internal.all_labels_match(smallint[], eo_internal.label_group[], boolean);
        drop function if exists eo_internal.label_groups(text[]);

        -- Unlike a B-tree it finds patches by any number of geohash prefixes: cell ^@ any (...).
        create index patch_cell_prefix on eo.patch using spgist (cell);
        create index patch_scene_class_ids on eo.patch using gin (scene_class_ids);
        """,
    )


def downgrade() -> None:
    run_sql(op.get_bind(), drop_functions(FILTER + NEW) + NEW_HELPERS)
    run_sql(
        op.get_bind(),
        """
        drop index eo.patch_cell_prefix, eo.patch_scene_class_ids;
        delete from eo_internal.sql_file;
        """,
    )
