"""The packed model in motion: torch and timm.

Where to begin reading, and what comes next:

* The story: `pack` (init, add a task, prune one), in a `session`. It begins with a timm network in `start` (`weights`
  from a file; `base`: the network is itself a task), or with what a task claims of an artifact in `claim`.
* A task in training: `task`, around the one loop in `train`, with the optimizer from `optimize`, and `freezer`, which
  holds the frozen weights. What it releases is in `release`, how much at most in `search`, what it leaves open in
  `fit`; `result` makes it part of an artifact. A `checkpoint` holds it with its `state`.
* Between arrays and tensors: `network`.
* Images: `sources` and `datasets` find them, `data` splits them, `pictures` opens them, `feed` makes batches of them,
  with `augment`.
* How it computes: `device`, `compute`, and in several processes `distributed`.
* A packed model in use: `packed` and `predict`; `unpack` and `evaluate` measure it, `calibrate` and `auto` tell its
  tasks apart; a task leaves by `export`.
"""
