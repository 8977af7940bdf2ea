"""A task in training: `task`, around the one loop in `train`, with an optimizer from `optimize` at the `rates`.

`freezer` keeps frozen weights in place and gives the optimizer the trainable `parts`; `release` says which weights are
pruned, minding which `taps` see more than padding; a `checkpoint` holds all that, with the run's `state`.
"""
