"""Glacier maps from multispectral satellite images, with fastai.

In notebooks: ``from glacier_fastai.all import *``. On the command line: ``glacier-fastai --help``.
"""

import warnings

# torch 2.15, at import, of what torchvision and smp do with it
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)

__version__ = "0.1.0.dev0"
