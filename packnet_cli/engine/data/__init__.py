"""From images to batches.

`sources` finds images in folders, in `lists` and in `datasets`; `splits` divides them into those to train on and those
to measure on; `pictures` opens one; `feed` makes batches, augmented by `augment`.
"""
