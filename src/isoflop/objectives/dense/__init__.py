"""Objectives with an answer for every place in a picture: `detector`, `segmenter`, and whether data fit them, `fit`."""
