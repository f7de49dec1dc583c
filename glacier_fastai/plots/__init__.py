"""Every figure, once: style, panels of maps, charts of scores."""
