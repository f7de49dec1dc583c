"""Post-processing of a map that comes strip by strip, exactly as if it had come at once."""

from __future__ import annotations

from collections.abc import Generator, Iterable

import numpy as np

from ..core.morphology import context, postprocess
from ..recipe import PostprocessRecipe
from .sink import Strip

__all__ = ["postprocessed"]


def postprocessed(
    strips: Iterable[Strip],  # a whole map, top to bottom
    settings: PostprocessRecipe | None,  # what is done; None: nothing
) -> Generator[Strip]:
    """Yield the same map after `core.morphology.postprocess`.

    Rows are held until `core.morphology.context` more are known on either side.
    """
    if settings is None:
        yield from strips
        return
    arguments = settings.by_code()
    reach = context(**arguments)
    classes, probs = np.empty((0, 0), np.uint8), np.empty((0, 0, 0), np.float32)  # rows held
    top, done = 0, 0  # the first of them, and the first not yet yielded

    def finished(upto: int) -> Strip:
        found = postprocess(classes, **arguments)[done - top : upto - top]
        return Strip(done, found, probs[:, done - top : upto - top])

    for strip in strips:
        if not len(classes):
            classes, probs = strip.classes, strip.probs
        else:
            classes, probs = np.concatenate([classes, strip.classes]), np.concatenate([probs, strip.probs], 1)
        upto = top + len(classes) - reach
        if upto - done >= max(reach, 1):  # not for every few rows: the context is seen again each time
            yield finished(upto)
            done = upto
            cut = max(done - reach - top, 0)
            classes, probs, top = classes[cut:], probs[:, cut:], top + cut
    if done < top + len(classes):
        yield finished(top + len(classes))
