"""Use a packed model: `packed` gives networks that switch between tasks, `predict` applies them to images.

`evaluate` measures tasks on their recorded images or on others; `auto` measures how well the task of an image is
guessed; `export` writes a task as a checkpoint, a folder for the Hugging Face hub, ONNX or a torch.export program.
"""
