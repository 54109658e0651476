-- The border to Python: PL/Python functions of the schema are in this folder, thin calls into pyfuncs/border. Only eo_owner may
-- execute them (the functions of eo that use them are security definer and check their arguments first). A server without
-- plpython3u skips the folder: nothing else needs the language to be there.
--
-- None of them raises, because PL/Python would show the user a traceback: the last column, failure, is null or an error,
-- which its type raises. pyfuncs/border/session.py makes the rows.

-- Whether the server's Python finds the package. It imports nothing of the package, so that there is nothing to fail.

create or replace function eo_internal.finds_package()
returns boolean
language plpython3u
stable parallel safe
security invoker
cost 1000
set search_path = pg_catalog, eo, pg_temp
as $$
from importlib.util import find_spec

return find_spec("pgearth") is not None and find_spec("pgearth.pyfuncs") is not None
$$;

create or replace function eo_internal.python_runtime(out runtime jsonb, out failure eo_internal.failure)
returns record
language plpython3u
stable parallel unsafe
security invoker
cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
from pgearth.pyfuncs.border import runtime

return runtime.runtime(plpy, GD)
$$;
