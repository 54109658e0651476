"""The older signature of eo.similar_to_vector, dropped; on the way down, the vector indexes."""

from alembic import op

from pgearth.migrations.sqlfiles import run_sql

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    run_sql(
        op.get_bind(),
        """
        drop function if exists eo.similar_to_vector(
            public.vector, integer, text, public.geometry, timestamptz, timestamptz, text[], text[], text[], eo.label_match, text[],
            text[], text[], boolean, boolean, real);
        """,
    )


def downgrade() -> None:
    run_sql(
        op.get_bind(),
        """
        do $$
        declare
            vector_index regclass;
        begin
            for vector_index in
                select c.oid::regclass
                from pg_class c
                where c.relnamespace = 'eo'::regnamespace and c.relkind = 'i' and c.relname ~ '^embedding__[0-9]+__hnsw$'
            loop
                execute format('drop index %s', vector_index);
            end loop;
        end
        $$;
        drop function if exists
            eo.similar_to_vector(
                public.vector, integer, text, boolean, text[], boolean, public.geometry, timestamptz, timestamptz, text[], text[], text[],
                eo.label_match, text[], text[], text[], boolean, boolean, real, text[], text[], bigint[]),
            eo.example_vector(text[], text[], text),
            eo.build_vector_index(text, integer, integer),
            eo_internal.vector_candidates(
                public.vector, smallint, bigint, bigint[], public.geometry, timestamptz, timestamptz, text[], text[], text[],
                eo.label_match, text[], text[], text[], boolean, boolean, real, text[], text[], bigint[]),
            eo_internal.example_embedding(text, smallint),
            eo_internal.vector_index_name(smallint),
            eo_internal.left_out(text[], boolean),
            eo_internal.same_place(public.geometry, public.geometry);
        delete from eo_internal.sql_file;
        """,
    )
