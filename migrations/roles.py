"""The roles of an archive: made, or made whole, by every migration, as a dump does not carry them."""

from __future__ import annotations

from sqlalchemy import Connection

from pgearth.migrations.sqlfiles import run_sql

# Roles belong to the whole server: another pgearth database may have made them, or be making them now. Whoever migrates
# has to be a member of eo_owner, to hand it what it makes.
MAKE_ROLES = """
do $$
declare
    role_name text;
    pair record;
begin
    foreach role_name in array array['eo_owner', 'eo_writer', 'eo_reader'] loop
        if to_regrole(role_name) is null then
            begin
                execute format('create role %I nologin', role_name);
            exception when duplicate_object or unique_violation then
                null;  -- made by a concurrent migration
            end;
        end if;
    end loop;
    for pair in
        select *
        from (values ('eo_reader', 'eo_writer', 'member'), ('eo_writer', 'eo_owner', 'member'),
                     ('eo_owner', current_user, 'usage')) wanted (role, member, how)
    loop
        if not pg_has_role(pair.member, pair.role, pair.how) then
            begin
                execute format('grant %I to %I', pair.role, pair.member);
            exception when unique_violation then
                null;  -- granted by a concurrent migration
            end;
        end if;
    end loop;
end
$$;
"""


def make_roles(connection: Connection) -> None:
    """Create the roles that are missing and their memberships, and make the user a member of eo_owner."""
    run_sql(connection, MAKE_ROLES)
