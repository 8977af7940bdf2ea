"""The packed model in motion: torch and timm.

Where to begin reading, and what comes next:

* The story: `pack` (init, add a task, prune one), in a `session`. It begins with a timm network in `start` (`weights`
  from a file; `base`: the network is itself a task), or with what a task claims of an artifact in `claim`. `checks` are
  made before; what a recipe leaves open is settled in `fit`, and in `search` how much to prune; `result` makes a
  trained task part of an artifact.
* `training`: a task in training. `data`: from images to batches. `using`: a packed model in use.
* What a network makes of images, in training and in use: `measure`, and how certain it may be of that, `calibrate`.
* Between arrays and tensors: `network`. How it computes: `device`, `compute`, and in several processes `distributed`.
"""
