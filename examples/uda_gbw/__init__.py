"""GBW inside unsupervised domain adaptation: the families of the paper's Table 1, with and without it."""
