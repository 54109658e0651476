"""Files from outside, opened with limits: archives, rasters and vectors, metadata."""
