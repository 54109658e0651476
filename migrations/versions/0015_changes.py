"""Changes are noted however rows change; packed codes say what they rest on; editions of CORINE and NUTS have names."""

from alembic import op

from pgearth.migrations.sqlfiles import run_sql

revision = "0015"
down_revision = "0014"

# Derived: packed again by eo.build_code_index. What was packed before cannot be proved.
TABLES = """
alter table eo.code_index
    drop column snapshot cascade,
    add column codes_guard text,
    add column patches_guard text;
comment on column eo.code_index.codes_guard is 'eo_internal.change_guard of the codes before they were read: packed codes serve while it is the same; null: they never do';
comment on column eo.code_index.patches_guard is 'eo_internal.change_guard of the patches before they were read: packed patches serve while it is the same and every eo.patch_change a search sees was seen; null: they never do';

drop table eo.patch_change cascade;
create table eo.patch_change (
    change_id uuid primary key default gen_random_uuid(),
    changed_by bigint not null default pg_current_xact_id()::text::bigint,
    changed_at timestamptz not null default now(),
    seen_by smallint[] not null default '{}'
);
alter table eo.patch_change owner to eo_owner;
create index patch_change_changed_by on eo.patch_change (changed_by);
comment on table eo.patch_change is 'Transactions that stored or changed patches or their codes: packed patches that were built without a change serve no search that sees it';
comment on column eo.patch_change.change_id is 'Key';
comment on column eo.patch_change.changed_by is 'Transaction (xid8) of the server where it was noted: tells a transaction that it has a note, and nothing else';
comment on column eo.patch_change.changed_at is 'Its start';
comment on column eo.patch_change.seen_by is 'Hash functions whose packed patches hold the change';
"""

# Row triggers, too: what logical replication applies fires no statement triggers. They fire for replicated rows only.
TRIGGERS = """
create or replace function eo_internal.note_patch_change() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    -- The time, too: in a restored dump, notes have numbers of another server's transactions. A note that was seen is of
    -- what this transaction changed before it packed the codes.
    if not exists (select from eo.patch_change c
                   where c.changed_by = pg_current_xact_id()::text::bigint and c.changed_at = now() and c.seen_by = '{}') then
        insert into eo.patch_change default values;
    end if;
    return null;
end
$$;
alter table eo.patch enable always trigger note_patch_change;
alter table eo.patch_bucket enable always trigger note_patch_change;
create trigger note_patch_change_replicated after insert or update on eo.patch
    for each row execute function eo_internal.note_patch_change();
create trigger note_patch_change_replicated after insert or update on eo.patch_bucket
    for each row execute function eo_internal.note_patch_change();
alter table eo.patch enable replica trigger note_patch_change_replicated;
alter table eo.patch_bucket enable replica trigger note_patch_change_replicated;

drop trigger keep_buckets on eo.bucket;
create trigger keep_buckets before update on eo.bucket
    for each row execute function eo_internal.keep_buckets();
create trigger keep_buckets_whole before truncate on eo.bucket
    for each statement execute function eo_internal.keep_buckets();
alter table eo.bucket enable always trigger keep_buckets;
alter table eo.bucket enable always trigger keep_buckets_whole;
alter table eo.bucket enable always trigger keep_buckets_in_use;
"""

# By code first: by hash function first, an index looks as good as the primary key for finding a bucket by its number (a
# foreign key does, for each patch) while statistics know nothing of a new hash function, and reads all of its buckets.
INDEXES = """
alter table eo.bucket drop constraint bucket_encoder_id_code_key, add unique (code, encoder_id);
"""
# The edition of what was loaded before is in the names of the files, mostly.
EDITIONS = """
create table eo.edition (
    reference text primary key check (reference in ('corine', 'nuts')),
    edition text not null,
    loaded_at timestamptz not null default now()
);
alter table eo.edition owner to eo_owner;
comment on table eo.edition is 'Which edition of CORINE and of NUTS the archive holds: one of each, loaded in one file or several';
comment on column eo.edition.reference is 'corine or nuts';
comment on column eo.edition.edition is 'Its year: the land cover''s, or that of the classification of regions';
comment on column eo.edition.loaded_at is 'When its first file was loaded';
insert into eo.edition (reference, edition)
select named.reference, min(named.edition)
from (
    select distinct 'corine' as reference, (regexp_match(source, 'clc5?[_-]?((?:19|20)[0-9]{2})', 'i'))[1] as edition
    from eo.corine where not starts_with(source, 'synthetic, seed ')
    union
    select 'nuts', (regexp_match(source, '(?<![0-9])20[0-9]{2}(?![0-9])'))[1]
    from eo.load where loader = 'nuts' and state = 'done'
) named
group by named.reference
having count(*) = 1 and count(named.edition) = 1;

alter table eo.patch add column label_edition text, add column nuts_edition text;
comment on column eo.patch.label_edition is 'Edition of CORINE (eo.edition) that eo.annotate found label_ids in; null: they are the data set''s, or not known, or were annotated by an older pgearth';
comment on column eo.patch.nuts_edition is 'Edition of NUTS (eo.edition) that eo.annotate found nuts_ids in; null: not known, or annotated by an older pgearth';

-- Pieces of a polygon are made again when it has changed. Rows that replication deletes take none along.
create function eo_internal.forget_pieces() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    if tg_table_name = 'corine' then
        delete from eo.corine_part where corine_id = old.corine_id;
    else
        delete from eo.nuts_part where nuts_id = old.nuts_id;
    end if;
    return null;
end
$$;
create trigger forget_pieces after update of label_id, geom on eo.corine
    for each row execute function eo_internal.forget_pieces();
create trigger forget_pieces after update of level, country_code, geom on eo.nuts
    for each row execute function eo_internal.forget_pieces();
create trigger forget_pieces_replicated after delete on eo.corine
    for each row execute function eo_internal.forget_pieces();
create trigger forget_pieces_replicated after delete on eo.nuts
    for each row execute function eo_internal.forget_pieces();
alter table eo.corine enable always trigger forget_pieces, enable replica trigger forget_pieces_replicated;
alter table eo.nuts enable always trigger forget_pieces, enable replica trigger forget_pieces_replicated;
"""
OLD_EDITIONS = """
drop trigger forget_pieces on eo.corine;
drop trigger forget_pieces on eo.nuts;
drop trigger forget_pieces_replicated on eo.corine;
drop trigger forget_pieces_replicated on eo.nuts;
drop function eo_internal.forget_pieces();
alter table eo.patch drop column label_edition cascade, drop column nuts_edition cascade;
drop table eo.edition cascade;
drop function if exists eo_internal.edition(text);
drop function if exists eo_internal.check_cover(double precision, text, integer, double precision, double precision);
"""
OLD_INDEXES = """
alter table eo.bucket drop constraint bucket_code_encoder_id_key, add unique (encoder_id, code);
"""

OLD_TABLES = """
drop function if exists eo_internal.change_guard(text);
drop function if exists eo_internal.unproved_codes(eo.code_index);
drop function if exists eo_internal.unproved_patches(eo.code_index);
drop function if exists eo_internal.watched_triggers();
delete from eo.code_index;
alter table eo.code_index
    drop column codes_guard cascade,
    drop column patches_guard cascade,
    add column snapshot text not null;
comment on column eo.code_index.snapshot is 'What the build saw (pg_snapshot): packed patches serve searches that see no later eo.patch_change';
drop table eo.patch_change cascade;
create table eo.patch_change (
    changed_by bigint primary key default pg_current_xact_id()::text::bigint,
    changed_at timestamptz not null default now()
);
alter table eo.patch_change owner to eo_owner;
comment on table eo.patch_change is 'Transactions that stored or changed patches or their codes: packed patches built before one serve no search that sees it';
comment on column eo.patch_change.changed_by is 'Transaction (xid8)';
comment on column eo.patch_change.changed_at is 'Its start';
delete from eo_internal.sql_file;
"""

OLD_TRIGGERS = """
create or replace function eo_internal.note_patch_change() returns trigger
language plpgsql
security definer
set search_path = eo, public, pg_temp
as $$
begin
    insert into eo.patch_change default values on conflict do nothing;
    return null;
end
$$;
drop trigger note_patch_change_replicated on eo.patch;
drop trigger note_patch_change_replicated on eo.patch_bucket;
alter table eo.patch enable trigger note_patch_change;
alter table eo.patch_bucket enable trigger note_patch_change;
drop trigger keep_buckets on eo.bucket;
drop trigger keep_buckets_whole on eo.bucket;
create trigger keep_buckets before update or truncate on eo.bucket
    for each statement execute function eo_internal.keep_buckets();
alter table eo.bucket enable trigger keep_buckets_in_use;
"""


def upgrade() -> None:
    run_sql(op.get_bind(), TABLES + TRIGGERS + INDEXES + EDITIONS)


def downgrade() -> None:
    # Functions of the older revision come from the older checkout.
    run_sql(op.get_bind(), OLD_EDITIONS + OLD_INDEXES + OLD_TRIGGERS + OLD_TABLES)
