"""Pure functions on NumPy arrays and torch tensors: no fastai, no disk, no globals."""
