"""From outside files to batches."""
