"""How good images are: an independent judge, distances between sets of features, paired comparisons."""
