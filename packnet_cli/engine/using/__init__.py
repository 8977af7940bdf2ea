"""A packed model in use: `packed` is a network that switches between tasks, `predict` asks it about images.

`evaluate` measures tasks, on images that they remember or on others; `auto` guesses the task of an image; `export`
writes a task as ONNX, as a program or as a folder for the hub.
"""
