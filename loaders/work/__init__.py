"""Pieces of work: run here, in several processes or on a Spark cluster; recorded, so that they can go on."""
