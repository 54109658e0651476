"""The border to PostgreSQL: every PL/Python body calls one function here; nothing else knows plpy."""
