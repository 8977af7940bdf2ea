"""From images to batches.

`sources` finds images in folders, in `lists` and in `datasets`, of which `shards` are a kind; `splits` divides them
into those to train on and those to measure on, and `identity` tells such sets apart; `pictures` opens one image, and
`decoding` tries all of them; `feed` makes batches, augmented by `augment`.
"""
