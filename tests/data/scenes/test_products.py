import json
import re
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
import rasterio
from contract.scenes import ProductContract
from products import HLS_CRS, KINDS, SIZE, UL, clouds, hls, landsat, packed, sentinel2, write

from glacier_fastai.data.scenes import archive
from glacier_fastai.data.scenes.opening import open_scene, scene_name
from glacier_fastai.errors import DataError, OutputError


def bit(name, n):
    """Where a bit of flags is set, and the pixel is not fill."""
    return lambda codes: ((codes[name] >> n & 1) == 1) & ~((codes[name] & 1) == 1)


def is_(name, *values):
    return lambda codes: np.isin(codes[name], values)


def radsat(codes):
    return codes["QA_RADSAT"] != 0


QA_PIXEL = {kind: bit("QA_PIXEL", n) for kind, n in {"dilated": 1, "clouds": 3, "shadows": 4}.items()}
QA_PIXEL |= {"fill": is_("QA_PIXEL", 1), "saturated": radsat}
CIRRUS = {"cirrus": bit("QA_PIXEL", 2)}
BQA = {"fill": is_("BQA", 1), "clouds": is_("BQA", 2800), "shadows": is_("BQA", 2976)}
PIXEL_QA = {kind: is_("pixel_qa", code) for kind, code in {"clouds": 480, "shadows": 328, "cirrus": 834}.items()}
SCL = {"clouds": is_("SCL", 8, 9), "cirrus": is_("SCL", 10), "shadows": is_("SCL", 3), "fill": is_("SCL", 0)}


def of(name, flags, **attributes):
    """Return the tests of a kind of product."""
    write_it = KINDS[name]
    fields = {"write": lambda self, folder: write_it(folder), "flags": flags, **attributes}
    return type(f"Test{re.sub('[^A-Za-z0-9]', '', name)}", (ProductContract,), fields)


TestLC08C2L2 = of("LC08 C2 L2", QA_PIXEL | CIRRUS)
TestLC09C2L1 = of("LC09 C2 L1", QA_PIXEL | CIRRUS)
TestLO08C2L2 = of("LO08 C2 L2", QA_PIXEL | CIRRUS)
TestLE07C2L2 = of("LE07 C2 L2", QA_PIXEL)
TestLE07C2L1 = of("LE07 C2 L1", QA_PIXEL)
TestLT05C2L2 = of("LT05 C2 L2", QA_PIXEL)
TestLC08C1L1 = of("LC08 C1 L1", BQA | {"cirrus": is_("BQA", 6816)})
TestLE07C1L1 = of("LE07 C1 L1", BQA)
TestLT04C1L1 = of("LT04 C1 L1", BQA)
TestLC08C1L2 = of("LC08 C1 L2", PIXEL_QA | {"fill": is_("pixel_qa", 1), "saturated": radsat})
TestS2L2A = of("S2 L2A", SCL | {"saturated": is_("SCL", 1)})
TestS2L2AOld = of("S2 L2A old", SCL | {"saturated": is_("SCL", 1)})
TestS2L1C = of("S2 L1C", {"clouds": lambda c: c["CLASSI"][0] == 1, "cirrus": lambda c: c["CLASSI"][1] == 1})
FMASK = {"clouds": is_("Fmask", 66, 18), "dilated": is_("Fmask", 132), "shadows": is_("Fmask", 8)}
TestL30 = of("HLS L30", FMASK | {"fill": is_("Fmask", 255)}, crs=HLS_CRS)
TestS30 = of("HLS S30", FMASK | {"fill": is_("Fmask", 255)}, crs=HLS_CRS)
