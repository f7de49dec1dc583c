"""From batches to a model bundle."""
