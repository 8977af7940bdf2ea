"""A packed model in use: `packed` gives networks that switch between tasks, `predict` asks them about images.

`evaluate` measures tasks, on the images that they remember or on others; `auto` guesses the task of an image; `export`
writes a task as a checkpoint, a folder for the hub, ONNX or a program.
"""
