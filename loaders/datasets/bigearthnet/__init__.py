"""BigEarthNet: names, the catalogue, and the archives with pixels."""
