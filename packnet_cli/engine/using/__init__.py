"""A packed model in use: `packed` is a network that switches between tasks, `predict` asks it about images.

`unpack` takes a task out and `evaluate` measures it; `calibrate` and `auto` tell tasks apart; `export` writes one as
ONNX, as a program or as a folder for the hub.
"""
