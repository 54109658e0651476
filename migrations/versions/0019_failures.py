"""The type by which PL/Python functions return their errors, so that users see no traceback."""

from alembic import op

from pgearth.migrations.sqlfiles import run_sql

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    run_sql(
        op.get_bind(),
        """
        -- A detail stands in the message, for a RAISE cannot leave it out where there is none.
        create function eo_internal.fail(failure jsonb)
        returns boolean
        language plpgsql
        immutable parallel safe strict
        set search_path = pg_catalog, eo, pg_temp
        as $$
        begin
            if failure ->> 'hint' is null then
                raise exception using errcode = failure ->> 'sqlstate', message = failure ->> 'message';
            end if;
            raise exception using errcode = failure ->> 'sqlstate', message = failure ->> 'message', hint = failure ->> 'hint';
        end
        $$;
        create domain eo_internal.failure as jsonb constraint failure_is_raised check (eo_internal.fail(value));
        comment on domain eo_internal.failure is 'Error of a PL/Python function: any value but null is raised, as {"sqlstate": ..., "message": ..., "hint": ...}';

        -- The PL/Python functions get a last column of this type; sql/030_python.sql makes them anew.
        do $do$
        declare
            thing record;
        begin
            for thing in
                select p.oid::regprocedure as name
                from pg_proc p
                where p.pronamespace = 'eo_internal'::regnamespace
                  and p.prolang = (select l.oid from pg_language l where l.lanname = 'plpython3u')
            loop
                execute format('drop function %s', thing.name);
            end loop;
        end
        $do$;
        """,
    )


def downgrade() -> None:
    run_sql(
        op.get_bind(),
        """
        drop domain eo_internal.failure cascade;
        drop function eo_internal.fail(jsonb);
        drop function if exists eo_internal.finds_package();
        delete from eo_internal.sql_file;
        """,
    )
