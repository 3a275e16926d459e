"""Objectives for dense tasks: `detector`, `segmenter`."""
