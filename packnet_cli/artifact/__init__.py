"""The packed model on disk, in numpy arrays: nothing here uses torch.

* `format` is the file and its specification; `header` its metadata, of which `rules` says what they may hold.
* `masks` is the algebra of the task-index mask: who owns a weight, who sees it, which are released.
* `edit` adds, removes and renames tasks; `verify` proves that no other has changed; `plan` shares out weights to come.
* `ship` makes other files of it; the compact one is packed by `compact` and `codec`. `summary` is what `info` shows.
* `atomic` replaces files at once, one writer at a time; `threads` works on several layers at a time.
"""
