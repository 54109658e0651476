"""What every loader reads of the archive and writes to it."""
