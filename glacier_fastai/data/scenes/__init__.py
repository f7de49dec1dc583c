"""Outside rasters as scenes: named bands, their units, what has data, and where it lies."""
