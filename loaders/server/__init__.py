"""The database server: the checkout's own, connections to any, its schema, the encoder process."""
