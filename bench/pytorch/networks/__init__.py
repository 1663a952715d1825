"""The project's networks in PyTorch, for comparison: one module per file, published names.

Every class loads a published state dict (`load_state_dict`), then `prepare(dtype)` lays the weights
out for inference. State between calls is an explicit argument, as in the engine.
"""
