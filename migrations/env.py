"""Run revisions, then, at head, apply the re-runnable files of sql/ in the same transaction."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from pgearth.migrations.mending import mend
from pgearth.migrations.models import Base
from pgearth.migrations.roles import make_roles
from pgearth.migrations.sqlfiles import apply_sql_files

OWN_SCHEMAS = {"eo", "eo_internal"}


def include_name(name: str | None, kind: str, _parents: object) -> bool:
    """Compare only our own schemas, so that PostGIS's tables do not show up as removed."""
    return name in OWN_SCHEMAS if kind == "schema" else True


def include_object(thing: object, name: str | None, kind: str, reflected: bool, _other: object) -> bool:
    """Leave out the partitions and indexes that functions create on demand; their parents stand for them."""
    del thing
    return not (kind in {"table", "index"} and reflected and name is not None and "__" in name)


def run(connection: Connection) -> None:
    """Migrate over `connection` and, when the target is head, bring functions and privileges up to date."""
    # Comments are written in the revisions only; the models do not repeat them, so they are not compared.
    connection.dialect.supports_comments = False
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        include_schemas=True,
        include_name=include_name,
        include_object=include_object,
        version_table_schema="public",
        version_table="pgearth_version",
        compare_type=True,
    )
    with context.begin_transaction():
        make_roles(connection)
        mend(connection, context.get_context().get_current_revision())
        context.run_migrations()
        if set(context.get_context().get_current_heads()) == set(context.script.get_heads()):
            apply_sql_files(connection)
            # The database may be a dump that was restored under another name.
            connection.exec_driver_sql("select eo.store_map_styles()")


if "connection" not in context.config.attributes:
    raise SystemExit("alembic alone knows no database. Run: pgearth migrate")
run(context.config.attributes["connection"])
