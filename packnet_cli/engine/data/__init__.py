"""From images to batches: `sources` and `datasets` find them, `splits` parts them into those to train and measure on.

`pictures` opens one, `feed` makes batches of them, with `augment`.
"""
