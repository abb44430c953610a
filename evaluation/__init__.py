"""How good pictures are: an independent judge, distances between sets of features, paired comparisons."""
