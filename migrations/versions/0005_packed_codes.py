"""Packed hash codes for exact search, buckets that are append-only, and the patches of a bucket from an index alone."""

from alembic import op

from pgearth.migrations.sqlfiles import run_sql

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    run_sql(
        op.get_bind(),
        """
        -- Revision 0004 was without it at first.
        do $$
        begin
            if to_regtype('eo_internal.example') is null then
                create type eo_internal.example as (patch_id bigint, code bit varying);
                comment on type eo_internal.example is 'A stored patch given as an example, with its hash code';
            end if;
        end
        $$;

        create table eo.code_index (
            encoder_id smallint primary key references eo.encoder,
            version uuid not null,
            buckets integer not null check (buckets > 0),
            patches bigint not null,
            bytes bigint not null,
            snapshot text not null,
            built_at timestamptz not null default now()
        );
        comment on table eo.code_index is 'Which hash functions have their codes, and what filters read of their patches, packed for search: derived by eo.build_code_index';
        comment on column eo.code_index.encoder_id is 'Hash function';
        comment on column eo.code_index.version is 'Names the files in the server''s data directory: pgearth/<database oid>/<encoder_id>-<version>.codes.safetensors and .patches.safetensors';
        comment on column eo.code_index.buckets is 'Buckets in the file: those numbered below this';
        comment on column eo.code_index.patches is 'Patches in the file: those that had a code';
        comment on column eo.code_index.bytes is 'Size of the files';
        comment on column eo.code_index.snapshot is 'What the build saw (pg_snapshot): packed patches serve searches that see no later eo.patch_change';
        comment on column eo.code_index.built_at is 'When it was built';

        create table eo.patch_change (
            changed_by bigint primary key default pg_current_xact_id()::text::bigint,
            changed_at timestamptz not null default now()
        );
        comment on table eo.patch_change is 'Transactions that stored or changed patches or their codes: packed patches built before one serve no search that sees it';
        comment on column eo.patch_change.changed_by is 'Transaction (xid8)';
        comment on column eo.patch_change.changed_at is 'Its start';

        -- Deleting is not noted: what a search finds among packed patches it looks up again.
        create function eo_internal.note_patch_change() returns trigger
        language plpgsql
        security definer
        set search_path = eo, public, pg_temp
        as $$
        begin
            insert into eo.patch_change default values on conflict do nothing;
            return null;
        end
        $$;
        create trigger note_patch_change after insert or update on eo.patch
            for each statement execute function eo_internal.note_patch_change();
        create trigger note_patch_change after insert or update on eo.patch_bucket
            for each statement execute function eo_internal.note_patch_change();

        -- Every backend keeps codes that it has read (DESIGN.md section 4): a bucket, once committed, stays as it is.
        create function eo_internal.keep_buckets() returns trigger
        language plpgsql
        set search_path = eo, public, pg_temp
        as $$
        begin
            raise exception 'hash buckets are append-only: % refused', tg_op
                using errcode = 'object_not_in_prerequisite_state',
                      hint = 'Delete from eo.patch_bucket what is no longer wanted; an empty bucket does no harm.';
        end
        $$;
        create trigger keep_buckets before update or delete or truncate on eo.bucket
            for each statement execute function eo_internal.keep_buckets();

        drop index eo.patch_bucket_bucket_no;
        create index patch_bucket_bucket_no on eo.patch_bucket (encoder_id, bucket_no, segment, patch_id, cell);
        """,
    )


def downgrade() -> None:
    run_sql(
        op.get_bind(),
        """
        drop index eo.patch_bucket_bucket_no;
        create index patch_bucket_bucket_no on eo.patch_bucket (encoder_id, bucket_no);
        drop trigger note_patch_change on eo.patch;
        drop trigger note_patch_change on eo.patch_bucket;
        drop function eo_internal.note_patch_change();
        drop table eo.patch_change cascade;
        drop trigger keep_buckets on eo.bucket;
        drop function eo_internal.keep_buckets();
        drop function if exists eo_internal.nearest_codes(smallint, bit varying[], bit varying[], integer, integer, boolean),
            eo_internal.packed_codes(smallint, bit varying[], bit varying[], integer, integer, boolean),
            eo_internal.packed_patches(smallint, bit varying[], bit varying[], bigint, bigint, integer, jsonb),
            eo_internal.nearest_packed_patches(smallint, bit varying[], bit varying[], bigint, bigint, integer, jsonb),
            eo_internal.pack_codes(smallint, uuid), eo.build_code_index(text), eo.build_plain_code_index(text),
            eo_internal.nearest_codes_sql(smallint, bit varying[], bit varying[], integer, integer);
        drop table eo.code_index cascade;
        delete from eo_internal.sql_file;
        """,
    )
