"""The packed model at rest: numpy arrays, never torch."""
