"""Partitions, derived pieces and the notes of changes leave schema eo, so that clients list what is for people."""

from alembic import op

from pgearth.migrations.sqlfiles import run_sql

revision = "0022"
down_revision = "0021"

# Tables depend on these functions of triggers, which name the tables by what their schema is.
TRIGGER_FUNCTIONS = """
create or replace function eo_internal.forget_pieces() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    if tg_table_name = 'corine' then
        delete from {schema}.corine_part where corine_id = old.corine_id;
    else
        delete from {schema}.nuts_part where nuts_id = old.nuts_id;
    end if;
    return null;
end
$$;
create or replace function eo_internal.note_patch_change() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    -- The time, too: in a restored dump, notes have numbers of another server's transactions. A note that was seen is of
    -- what this transaction changed before it packed the codes.
    if not exists (select from {schema}.patch_change c
                   where c.changed_by = pg_current_xact_id()::text::bigint and c.changed_at = now() and c.seen_by = '{{}}') then
        insert into {schema}.patch_change default values;
    end if;
    return null;
end
$$;
"""
# Indexes, constraints and sequences go along with their table.
MOVE = """
do $$
declare
    moved regclass;
begin
    for moved in
        select c.oid
        from pg_class c
        where c.relnamespace = '{old}'::regnamespace and c.relkind in ('r', 'p')
          and (c.relispartition or c.relname in ('corine_part', 'nuts_part', 'patch_change'))
    loop
        execute format('alter table %s set schema {new}', moved);
    end loop;
end
$$;
"""


def upgrade() -> None:
    run_sql(op.get_bind(), MOVE.format(old="eo", new="eo_internal"))
    run_sql(op.get_bind(), TRIGGER_FUNCTIONS.format(schema="eo_internal"))
    run_sql(
        op.get_bind(),
        """
        comment on schema eo_internal is 'pgearth: PL/Python wrappers, helpers, partitions and derived tables behind schema eo';
        comment on column eo.code_index.patches_guard is 'eo_internal.change_guard of the patches before they were read: packed patches serve while it is the same and every eo_internal.patch_change a search sees was seen; null: they never do';
        """,
    )


def downgrade() -> None:
    run_sql(op.get_bind(), MOVE.format(old="eo_internal", new="eo"))
    run_sql(op.get_bind(), TRIGGER_FUNCTIONS.format(schema="eo"))
    run_sql(
        op.get_bind(),
        """
        comment on schema eo_internal is 'pgearth: PL/Python wrappers and helpers behind the functions of schema eo';
        comment on column eo.code_index.patches_guard is 'eo_internal.change_guard of the patches before they were read: packed patches serve while it is the same and every eo.patch_change a search sees was seen; null: they never do';
        delete from eo_internal.sql_file;
        """,
    )
