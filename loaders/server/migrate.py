"""`pgearth migrate`: bring a database's schema to this checkout's version, or back to an older one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import alembic.command
import alembic.config
import click
import sqlalchemy
from alembic.script import ScriptDirectory
from psycopg import errors, sql

import pgearth.migrations
from pgearth import pyfuncs
from pgearth.loaders.server.connection import sqlalchemy_url
from pgearth.loaders.server.installation import OLDEST_VERSION
from pgearth.migrations.sqlfiles import DEPENDENT_HINT, drop_functions, has_python_functions
from pgearth.migrations.surroundings import obstacle, warnings
from pgearth.pyfuncs.errors import PgearthError

BASE = "base"
HEAD = "head"

# Every statement below a migration is one transaction; a second migration of the database waits for its end.
TRY_LOCK = "select pg_try_advisory_xact_lock(hashtextextended('pgearth migrate', 0))"
LOCK = "select pg_advisory_xact_lock(hashtextextended('pgearth migrate', 0))"

DATABASE = """
select current_database(), getdatabaseencoding(), current_setting('server_version_num')::integer / 10000,
       current_setting('transaction_read_only')::boolean,
       array(select name from unnest('{postgis,postgis_raster,vector}'::text[]) as name
             where name not in (select extname from pg_extension union all select name from pg_available_extensions))
"""

# What a user who is no superuser lacks, and the statement by which a superuser gives it.
MISSING_RIGHTS = """
with me as (
    select r.rolname, r.rolcreaterole, has_database_privilege(current_database(), 'create') as may_create
    from pg_roles r
    where r.rolname = current_user and not r.rolsuper
)
select format('the extension %%s is missing', name), format('create extension %%I schema public', name)
from me, unnest('{postgis,postgis_raster,vector}'::text[]) as name
where not exists (select from pg_extension e where e.extname = name)
  and not (me.may_create and exists (select from pg_available_extension_versions v where v.name = name and v.trusted))
union all
select format('the role %%s is missing', name), format('create role %%I nologin', name)
from me, unnest('{eo_owner,eo_writer,eo_reader}'::text[]) as name
where to_regrole(name) is null and not me.rolcreaterole
union all
select format('%%s is no member of %%s', pair.member, pair.role), format('grant %%I to %%I', pair.role, pair.member)
from me, lateral (values ('eo_reader', 'eo_writer', 'member'), ('eo_writer', 'eo_owner', 'member'),
                         ('eo_owner', me.rolname::text, 'usage')) pair (role, member, how)
where not case when to_regrole(pair.role) is null or to_regrole(pair.member) is null then me.rolcreaterole
               else pg_has_role(pair.member, pair.role, pair.how)
                    or pg_has_role(pair.role, 'member with admin option')
                    or me.rolcreaterole and current_setting('server_version_num')::integer < 160000 end
union all
select 'schemas are to be made', format('grant create on database %%I to %%I', current_database(), me.rolname)
from me
where (to_regnamespace('eo') is null or to_regnamespace('eo_layers') is null) and not me.may_create
union all
select 'tables are to be made in the schema public', format('grant create on schema public to %%I', me.rolname)
from me
where (to_regclass('public.pgearth_version') is null or to_regclass('public.layer_styles') is null)
  and not has_schema_privilege('public', 'create')
union all
select 'MODIS''s reference system is to be stored', format('grant insert on public.spatial_ref_sys to %%I', me.rolname)
from me
where %s < '0010' and to_regclass('public.spatial_ref_sys') is not null
  and not has_table_privilege('public.spatial_ref_sys', 'insert')
"""
FOREIGN_OWNERS = """
select string_agg(distinct pg_get_userbyid(owner), ', ')
from (select relnamespace as namespace, relowner as owner from pg_class
      union all select pronamespace, proowner from pg_proc
      union all select oid, nspowner from pg_namespace) thing
where namespace in (to_regnamespace('eo'), to_regnamespace('eo_internal'), to_regnamespace('eo_layers'))
  and not pg_has_role(owner, 'usage')
"""

# What of anybody's a downgrade may take along; functions of pgearth are left out, as they come with a checkout.
INVENTORY = """
select kind, schema || '.' || name
from (
    select case c.relkind when 'v' then 'view' when 'm' then 'materialized view' when 'f' then 'foreign table'
                          else 'table' end as kind,
           c.relnamespace as namespace, c.relname::text as name, 'pg_class'::regclass as class, c.oid as oid
    from pg_class c
    where c.relkind in ('r', 'p', 'f', 'v', 'm') and not c.relispartition
    union all
    select 'column', c.relnamespace, c.relname || '.' || a.attname, 'pg_class'::regclass, c.oid
    from pg_attribute a
    join pg_class c on c.oid = a.attrelid
    where c.relkind in ('r', 'p', 'f') and not c.relispartition and a.attnum > 0 and not a.attisdropped
    union all
    select 'function', p.pronamespace, concat(p.proname, '(', pg_get_function_identity_arguments(p.oid), ')'),
           'pg_proc'::regclass, p.oid
    from pg_proc p
    union all
    select 'constraint', c.relnamespace, c.relname || '.' || k.conname, 'pg_class'::regclass, c.oid
    from pg_constraint k
    join pg_class c on c.oid = k.conrelid
    union all
    select 'trigger', c.relnamespace, c.relname || '.' || t.tgname, 'pg_class'::regclass, c.oid
    from pg_trigger t
    join pg_class c on c.oid = t.tgrelid
    where not t.tgisinternal
    union all
    select 'policy', c.relnamespace, c.relname || '.' || p.polname, 'pg_class'::regclass, c.oid
    from pg_policy p
    join pg_class c on c.oid = p.polrelid
) thing
cross join lateral (select n.nspname::text as schema from pg_namespace n where n.oid = thing.namespace) n
where schema !~ '^pg_|^information_schema$'
  and not exists (select from pg_depend d where d.classid = thing.class and d.objid = thing.oid and d.deptype = 'e')
  and (schema <> 'eo' or kind in ('table', 'column')) and schema <> 'eo_internal'
"""

# Refused while functions of pgearth depend on those of PostGIS; nothing is done where there is nothing newer.
UPGRADE_EXTENSIONS = (
    "set local client_min_messages = warning",
    "select public.postgis_extensions_upgrade()",
    "alter extension vector update",
)

Report = Callable[[str], object]
Thing = tuple[str, str]


def configuration(connection: sqlalchemy.Connection) -> alembic.config.Config:
    """Alembic's configuration for `connection`, without a file."""
    config = alembic.config.Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(pgearth.migrations.__file__).parent))
    return config


def known_revisions() -> dict[str, str]:
    """What each revision of this checkout is, by its number, oldest first."""
    scripts = list(ScriptDirectory(str(Path(pgearth.migrations.__file__).parent)).walk_revisions())
    return {script.revision: script.doc for script in reversed(scripts)}


def resolve(revision: str, known: list[str]) -> str:
    """The number of `revision`, which may be `head`, or `base`. Raises PgearthError if there is no such revision."""
    if revision == HEAD:
        return known[-1]
    if revision != BASE and revision not in known:
        raise PgearthError(
            f"There is no revision {revision}.", f"Revisions are {known[0]} to {known[-1]} (head), and base: no schema."
        )
    return revision


@contextmanager
def transaction(url: sqlalchemy.URL | str, report: Report) -> Iterator[sqlalchemy.Connection]:
    """A transaction on the database at `url`, with no other migration beside it.

    Raises PgearthError where it cannot be had, and psycopg's errors as such.
    """
    engine = sqlalchemy.create_engine(
        url,
        poolclass=sqlalchemy.NullPool,
        isolation_level="READ COMMITTED",  # after waiting, it sees what the other migration did
        connect_args={"client_encoding": "utf8"},
    )
    try:
        connection = engine.connect()
    except sqlalchemy.exc.OperationalError as error:
        raise PgearthError(
            f"The database cannot be reached: {' '.join(str(error.orig).split())}",
            "Check that the server runs, and what PGEARTH_DSN or libpq's PG* variables name.",
        ) from error
    with unwrapped(), connection, connection.begin():
        # In public, others may have put what looks like a function or a table of the system.
        connection.exec_driver_sql("set local search_path = pg_catalog, pg_temp")
        require_suitable(connection)
        if fault := obstacle(connection):
            raise PgearthError(fault.message, fault.hint)
        if not connection.exec_driver_sql(TRY_LOCK).scalar():
            report("Another migration of this database is running; this one waits for its end.")
            connection.exec_driver_sql(LOCK)
        yield connection


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raise psycopg's errors instead of SQLAlchemy's."""
    try:
        yield
    except sqlalchemy.exc.DBAPIError as error:
        raise error.orig or error from None


def require_suitable(connection: sqlalchemy.Connection) -> None:
    """Raise PgearthError unless the database can hold an archive."""
    name, encoding, version, read_only, unavailable = connection.exec_driver_sql(DATABASE).one()
    if encoding != "UTF8":
        raise PgearthError(
            f"The database {name} has the encoding {encoding}; an archive needs UTF8.",
            "Make another: createdb --encoding=UTF8 --template=template0 NAME",
        )
    if version < OLDEST_VERSION:
        raise PgearthError(
            f"The server is PostgreSQL {version}; pgearth needs {OLDEST_VERSION} or newer.",
            "Upgrade the server, or name another in PGEARTH_DSN.",
        )
    if read_only:
        raise PgearthError(
            f"The database {name} can only be read: its server is a standby, or default_transaction_read_only is on.",
            "Run pgearth migrate on the primary, or without the setting.",
        )
    if unavailable:
        raise PgearthError(
            f"The server lacks the extension {', '.join(unavailable)}.",
            "docker/install-server.sh installs PostgreSQL with all that pgearth needs (Debian).",
        )


def current_revision(connection: sqlalchemy.Connection, known: list[str]) -> str:
    """The revision that the database is at; `base`: it has no schema. Raises PgearthError if that cannot be."""
    database = connection.exec_driver_sql("select current_database()").scalar()
    recorded = None
    if connection.exec_driver_sql("select to_regclass('public.pgearth_version') is not null").scalar():
        recorded = connection.exec_driver_sql("select max(version_num) from public.pgearth_version").scalar()
    has_schema = connection.exec_driver_sql(
        "select coalesce(to_regnamespace('eo'), to_regnamespace('eo_internal')) is not null"
    ).scalar()
    if recorded is None and has_schema:
        raise PgearthError(
            f"The database {database} has pgearth's schemas, but public.pgearth_version does not say their revision,"
            " as after a restore without data.",
            "Restore the data, too (docs/operations.md), or drop the schemas eo and eo_internal to begin anew.",
        )
    if recorded is None:
        return BASE
    if recorded not in known:
        version = (
            has_schema and connection.exec_driver_sql("select version from eo_internal.schema_version").scalar()
        ) or "unknown"
        raise PgearthError(
            f"The database {database} is at revision {recorded} (pgearth {version}), which is newer than this checkout:"
            f" pgearth {pyfuncs.__version__} knows {known[0]} to {known[-1]}.",
            "Use the newer checkout.",
        )
    if not has_schema:
        raise PgearthError(
            f"The database {database} is recorded to be at revision {recorded}, but has no schema eo.",
            "Restore a backup, or begin anew: drop table public.pgearth_version",
        )
    return str(recorded)


def require_rights(connection: sqlalchemy.Connection, current: str) -> None:
    """Raise PgearthError unless the user may do what an upgrade of a database at `current` does."""
    user, database = connection.exec_driver_sql("select current_user, current_database()").one()
    missing = connection.exec_driver_sql(MISSING_RIGHTS, ("" if current == BASE else current,)).all()
    if missing:
        raise PgearthError(
            f"The role {user} may not migrate the database {database}: {'; '.join(reason for reason, _ in missing)}.",
            f"Have a superuser run there: {'; '.join(statement for _, statement in missing)};",
        )
    if owners := connection.exec_driver_sql(FOREIGN_OWNERS).scalar():
        raise PgearthError(
            f"Parts of the archive belong to {owners}, of which {user} is no member.",
            f"Run pgearth migrate as {owners} or as a superuser: it gives them to eo_owner.",
        )


@contextmanager
def explained(used: list[str]) -> Iterator[None]:
    """Say what to do about errors for want of rights, or because of a user's objects; `used` says what they need."""
    try:
        with unwrapped():
            yield
    except (
        errors.DependentObjectsStillExist,
        errors.InvalidFunctionDefinition,
        errors.InvalidTableDefinition,
        errors.AmbiguousFunction,
    ) as error:
        reason = "\n".join(filter(None, [error.diag.message_primary, error.diag.message_detail]))
        if used:
            reason += f"\nObjects of yours need what this version changes: {'; '.join(used)}"
        raise PgearthError(reason, DEPENDENT_HINT) from error
    except errors.InsufficientPrivilege as error:
        raise PgearthError(
            error.diag.message_primary or str(error), "Run pgearth migrate as a superuser, or see docs/operations.md."
        ) from error


def upgrade(url: sqlalchemy.URL | str, revision: str = HEAD, report: Report = str, *, extensions: bool = False) -> str:
    """Upgrade the database at `url` to `revision` in one transaction, and return the number of this revision.

    At head, functions, roles and privileges are made whole. `extensions`: PostGIS and pgvector are upgraded first.
    Raises PgearthError for a revision that is older than the database's, and for whatever else stands in the way.
    """
    known = known_revisions()
    numbers = list(known)
    target = resolve(revision, numbers)
    if target == BASE:
        raise PgearthError("base, no schema, is nothing to upgrade to.", "To remove it: pgearth migrate --down base")
    with transaction(url, report) as connection:
        current = current_revision(connection, numbers)
        if current != BASE and target < current:
            raise PgearthError(
                f"The database holds {describe(current)}, which is newer than {revision}.",
                f"To downgrade it: pgearth migrate --down {revision}",
            )
        pending = [number for number in numbers if (current == BASE or number > current) and number <= target]
        require_rights(connection, current)
        if pending:
            report(f"The database holds {describe(current)}.")
        for number in pending:
            report(f"Applying {number}: {known[number]}")
        used = drop_functions(connection) if (pending or extensions) and current != BASE else []
        with explained(used):
            if extensions and current != BASE:
                for statement in UPGRADE_EXTENSIONS:
                    connection.exec_driver_sql(statement)
            alembic.command.upgrade(configuration(connection), target)
        if target == numbers[-1] and not has_python_functions(connection):
            report("PL/Python is missing: functions that encode, hash or draw, see docs/without_python.md.")
    return target


def downgrade(url: sqlalchemy.URL | str, revision: str, report: Report = str) -> None:
    """Downgrade the database at `url` to `revision` in one transaction; an older checkout then brings its functions."""
    numbers = list(known_revisions())
    target = resolve(revision, numbers)
    with transaction(url, report) as connection:
        require_newer(connection, numbers, target)
        step_down(connection, target)


def losses(url: sqlalchemy.URL | str, revision: str, report: Report = str) -> list[str]:
    """What a downgrade of the database at `url` to `revision` would delete, in words: it is done, and undone."""
    numbers = list(known_revisions())
    target = resolve(revision, numbers)
    with transaction(url, report) as connection:
        report(f"The database holds {describe(require_newer(connection, numbers, target))}.")
        things, rows = inventory(connection), row_counts(connection)
        savepoint = connection.begin_nested()
        step_down(connection, target)
        left, rows_left = inventory(connection), row_counts(connection)
        savepoint.rollback()
        lost = [thing for thing in things if thing not in left]
        return say(connection, lost, {name: (rows[name], rows_left.get(name, 0)) for name in rows})


def say(connection: sqlalchemy.Connection, lost: list[Thing], rows: dict[str, tuple[int, int]]) -> list[str]:
    """Lines about the things that are `lost`, and about tables of `rows` before and after."""
    tables = {name for kind, name in lost if kind == "table"}
    found, empty = [], 0
    for kind, name in lost:
        table, _, column = name.rpartition(".")
        if kind == "table" or (kind == "column" and table not in tables):
            number = count(connection, name) if kind == "table" else count(connection, table, column)
            empty += not number
            if number:
                found.append(f"{kind} {name}: {number} rows")
        elif table not in tables:
            found.append(f"{kind} {name}")
    found += [
        f"{before - after} of the {before} rows of {name}"
        for name, (before, after) in rows.items()
        if after < before and name not in tables
    ]
    return [*found, f"empty tables and columns: {empty}"] if empty else found


def describe(revision: str) -> str:
    """What a database at `revision` holds."""
    return "no archive" if revision == BASE else f"an archive at revision {revision}"


def require_newer(connection: sqlalchemy.Connection, numbers: list[str], target: str) -> str:
    """Return the revision of the database. Raises PgearthError unless it is newer than `target`."""
    current = current_revision(connection, numbers)
    if current == BASE or (target != BASE and target >= current):
        raise PgearthError(
            f"The database holds {describe(current)}: nothing is to be downgraded.",
            "Name an older revision, or base: no schema.",
        )
    return current


def step_down(connection: sqlalchemy.Connection, target: str) -> None:
    """Drop the functions, and run the downgrades to `target`."""
    used = drop_functions(connection)
    with explained(used):
        alembic.command.downgrade(configuration(connection), target)


def inventory(connection: sqlalchemy.Connection) -> list[Thing]:
    """Kind and name of what a downgrade may delete, anybody's."""
    return sorted(tuple(row) for row in connection.exec_driver_sql(INVENTORY))


def row_counts(connection: sqlalchemy.Connection) -> dict[str, int]:
    """Number of rows by table of the archive, where there are any."""
    tables = (name for kind, name in inventory(connection) if kind == "table" and name.startswith("eo"))
    counts = {name: count(connection, name) for name in tables}
    return {name: rows for name, rows in counts.items() if rows}


def count(connection: sqlalchemy.Connection, table: str, column: str | None = None) -> int:
    """Number of rows of a table, or of those where a column is not null."""
    schema, _, name = table.partition(".")
    counted = sql.SQL("*") if column is None else sql.Identifier(column)
    query = sql.SQL("select count({}) from {}").format(counted, sql.Identifier(schema, name)).as_string()
    return int(connection.exec_driver_sql(query).scalar_one())


def warn(url: sqlalchemy.URL | str) -> None:
    """Say what an administrator should know of the database at `url`."""
    with sqlalchemy.create_engine(url).connect() as connection:
        for fault in warnings(connection):
            click.echo(f"Warning: {fault.message}\nHint: {fault.hint}", err=True)


@click.command()
@click.argument("revision", required=False)
@click.option("--down", is_flag=True, help="Downgrade to REVISION (`base` removes everything) instead of upgrading.")
@click.option("--yes", is_flag=True, help="With --down: do not ask.")
@click.option("--extensions", is_flag=True, help="Upgrade PostGIS and pgvector to what the server has installed, too.")
def migrate(revision: str | None, down: bool, yes: bool, extensions: bool) -> None:
    """Upgrade the schema to REVISION (head unless given), and make functions, roles and privileges whole.

    Running it again changes nothing. It is one transaction: whatever ends it early leaves the database as it was.
    """
    if extensions and down:
        raise click.UsageError("--extensions upgrades: it does not go with --down.")
    if down and revision is None:
        raise click.UsageError("--down needs a REVISION: the older one to go to, or base, no schema.")
    revision = revision or HEAD
    url = sqlalchemy_url()
    if down:
        lost = losses(url, revision, click.echo)
        click.echo("\n  ".join([f"A downgrade to {revision} deletes:", *(lost or ["no stored data"])]))
        if not yes and not confirmed():
            raise PgearthError("Nothing was changed.", "Answer y, or pass --yes.")
        downgrade(url, revision, click.echo)
        click.echo(f"The database holds {describe(revision)}.")
        if revision != BASE:
            click.echo("Its functions come from the checkout of that revision: pgearth migrate")
    else:
        reached = upgrade(url, revision, click.echo, extensions=extensions)
        warn(url)
        click.echo(f"The database holds {describe(reached)} (pgearth {pyfuncs.__version__}).")


def confirmed() -> bool:
    """Whether the user wants it; one who cannot be asked does not."""
    try:
        return click.confirm("Go on?")
    except click.Abort:
        return False
