"""A task in training: `task`, around the one loop in `train`, with an optimizer from `optimize`.

`freezer` holds the frozen weights, and gives the optimizer the `parts` that are not; `release` says which go; a
`checkpoint` holds all that, with the run's `state`.
"""
