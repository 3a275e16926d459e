"""isoflop: which vision backbone, how large, for how long - answered by measurement at equal compute."""
