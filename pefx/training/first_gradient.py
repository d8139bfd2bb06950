"""The gradient of the base's matrices by a user's first texts: what a start along it is made of."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pefx.config import Remat
from pefx.mesh import by_row, fetch, share
from pefx.model import Base
from pefx.steps import base_gradient
from pefx.training.heldout import device_batch
from pefx.training.planner import Layout, Lesson, lay_out


def first_gradient(
    base: Base, lessons: Sequence[Lesson], layout: Layout, targets: Sequence[str], remat: Remat = "none"
) -> dict[str, np.ndarray]:
    """By site, the gradient `[L, (E,) out, in]` of these lessons' nats under the bare base. Float32.

    In a share of its own, whatever else a step of `layout` holds: it depends on no other user. Within the base's mesh.
    """
    alone = replace(layout, shares=1, terms=False, routes=None)
    own = [[replace(item, slot=-1, terms=None) for item in lessons]]
    fields = lay_out([own, *([[]] for _ in range(layout.shards - 1))], alone)
    found = fetch(base_gradient(base, share(by_row, device_batch(fields)), sites=tuple(targets), remat=remat))
    return {site: np.asarray(x, np.float32) for site, x in found.items()}
