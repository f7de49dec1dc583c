"""Glacier maps from multispectral satellite images, with fastai.

In notebooks: ``from glacier_fastai.all import *``. On the command line: ``glacier-fastai --help``.
"""

__version__ = "0.1.0.dev0"
