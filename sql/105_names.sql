-- stub
create or replace function eo_internal.platform_names(given text[]) returns text[] language sql immutable parallel safe strict begin atomic select given; end;
create or replace function eo_internal.country_codes(given text[]) returns text[] language sql immutable parallel safe strict begin atomic select given; end;
create or replace function eo_internal.split_names(given text[]) returns text[] language sql immutable parallel safe strict begin atomic select given; end;
create or replace function eo_internal.source_names(given text[]) returns text[] language sql immutable parallel safe strict begin atomic select given; end;
create or replace function eo_internal.did_you_mean(wrong text, known text[]) returns text language sql immutable parallel safe begin atomic select null::text; end;
