"""The packed model on disk, in numpy arrays: nothing here uses torch."""
