"""Made-up batches of normalised images and masks with holes, for the tests of augmentation."""

import torch

STRONG = {"rotate": 90, "scale": 0.3, "shift": 0.2, "elastic": 4, "grid": 0.3}
HEAVY = {"brightness": 0.3, "contrast": 0.3, "gamma": 0.3, "noise": 0.1, "blur": 1.0, "dropout": 0.5}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(n=4, c=3, size=(24, 20), holes=0.1, seed=0):
    g = seeded(seed)
    x = torch.randn(n, c, *size, generator=g)
    y = torch.randint(0, 4, (n, *size), generator=g)
    hole = torch.rand(n, *size, generator=g) < holes
    y[hole] = 255
    return x * ~hole[:, None], y
