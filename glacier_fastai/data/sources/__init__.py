"""Outside files to a tile store, one module per format."""
