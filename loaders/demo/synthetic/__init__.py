"""A synthetic archive: a made-up landscape in Germany, and Sentinel-2 patches that show it."""
