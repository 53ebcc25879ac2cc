"""How sharply a layer looks at single tokens that are far back."""

from __future__ import annotations

import torch

from .locality import Locality
from .sampled import Rows


class Sharpness(Locality):
    """One minus the norm of a query's attention to far tokens, of the head where it is largest.

    Far mass (:class:`Locality`) says how much a layer reads far back, and not whether it matters which tokens these
    are: attention spread over a whole text is much the same with half of the tokens gone. The norm, the root of the sum
    of squares, of a mass m on one token is m, on n tokens alike m / sqrt(n). One head that looks things up is enough
    for its layer to need the tokens, so heads are not averaged.
    """

    name = "sharpness"
    label = "1 - sharpness"

    def need(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        far = rows.probabilities * rows.per_query_head(self.far(rows))
        return torch.linalg.vector_norm(far, dim=-1).amax(dim=1), self.weight(rows)
