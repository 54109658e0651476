"""Extensions and schemas."""

from alembic import op

from pgearth.migrations.sqlfiles import run_sql

revision = "0001"
down_revision = None


def upgrade() -> None:
    # Every migration makes the roles: see pgearth.migrations.roles.
    # plpython3u is not needed by any revision and not to be had on every server: see pgearth.migrations.sqlfiles.has_plpython.
    run_sql(
        op.get_bind(),
        """
        create extension if not exists postgis schema public;
        create extension if not exists postgis_raster schema public;
        create extension if not exists vector schema public;

        create schema eo authorization eo_owner;
        comment on schema eo is 'pgearth: the archive of satellite images and everything a user calls';
        create schema eo_internal authorization eo_owner;
        comment on schema eo_internal is 'pgearth: PL/Python wrappers and helpers behind the functions of schema eo';

        -- The schema-level form has no effect on functions; the global one has.
        alter default privileges for role eo_owner revoke execute on functions from public;
        do $$
        begin
            execute format('alter default privileges for role %I revoke execute on functions from public', current_user);
        end
        $$;

        create table eo_internal.schema_version (
            singleton boolean primary key default true check (singleton),
            version text not null
        );
        comment on table eo_internal.schema_version is 'The package version whose migrations and SQL files this database has';
        insert into eo_internal.schema_version (version) values ('');

        create table eo_internal.sql_file (
            name text primary key,
            sha256 text not null
        );
        comment on table eo_internal.sql_file is 'Files of sql/ as they were last applied';
        """,
    )


def downgrade() -> None:
    # The extensions stay: other schemas of the database may use them. A role stays while another database needs it.
    run_sql(
        op.get_bind(),
        """
        drop schema eo_internal cascade;
        drop schema eo cascade;
        alter default privileges for role eo_owner grant execute on functions to public;
        do $$
        declare
            role_name text;
        begin
            execute format('alter default privileges for role %I grant execute on functions to public', current_user);
            foreach role_name in array array['eo_reader', 'eo_writer', 'eo_owner'] loop
                begin
                    execute format('drop owned by %I', role_name);
                    execute format('drop role %I', role_name);
                exception when dependent_objects_still_exist then
                    null;
                end;
            end loop;
        end
        $$;
        """,
    )
