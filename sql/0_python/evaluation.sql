-- Measures of retrieval and of codes.

create or replace function eo_internal.retrieval_metrics(
    encoder_id smallint,
    queries bigint[],
    query_cells text[],
    archive bigint[],
    archive_cells text[],
    scheme text,
    level integer,
    k integer,
    relevance text,
    max_queries integer,
    seed integer
)
returns table (metric text, value double precision, chance double precision, failure eo_internal.failure)
language plpython3u
stable parallel unsafe
security invoker
rows 20 cost 1000000
set search_path = pg_catalog, eo, pg_temp
as $$
from pgearth.pyfuncs.border import evaluation

return evaluation.retrieval_metrics(
    plpy, GD, encoder_id, queries, query_cells, archive, archive_cells, scheme, level, k, relevance, max_queries, seed
)
$$;

create or replace function eo_internal.code_statistics(encoder_id smallint, patch_ids bigint[], cells text[])
returns table (statistic text, value double precision, failure eo_internal.failure)
language plpython3u
stable parallel unsafe strict
security invoker
rows 10 cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
from pgearth.pyfuncs.border import evaluation

return evaluation.code_statistics(plpy, GD, encoder_id, patch_ids, cells)
$$;
