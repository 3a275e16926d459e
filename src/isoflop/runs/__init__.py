"""The files of a run, with one typed reader and writer each. Imports neither torch nor other packages of isoflop."""
