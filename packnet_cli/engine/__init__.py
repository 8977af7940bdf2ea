"""The packed model at work: everything that needs torch and timm.

Where to begin reading, and what comes next:

* The story is `pack` (init, add a task, prune one), in a `session`. `start` makes the timm network (`pretrained` looks
  it up, `weights` reads a file, `first_task` names the classes of a network kept as the first task); `claim` says which
  weights a task takes.
  `checks` come before training; `fit` settles what a recipe leaves open, `search` how much to prune; `result` makes the
  trained task part of an artifact. `dry_run` shows what would be shared out.
* `training` trains a task, `data` turns images into batches, `using` runs a packed model.
* `measure` computes logits and accuracies, `calibrate` temperatures.
* `network` builds networks and moves weights between them and arrays. How they compute: `device`, `compute`,
  `convolutions`, torch's `modes`, and with several processes `distributed`.
"""
