"""Pixels: PostGIS rasters, uploaded images, pictures, segments of a patch."""
