"""From a model bundle to what people use."""
