"""Area under the ROC curve."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from erless.errors import QueryError

__all__ = ["auc"]


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Probability that a positive sample scores above a negative one; ties count half.

    By the Mann-Whitney statistic: (Σ ranks of positives - P(P+1)/2) / (P·N).

    >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75

    Raises:
        QueryError: all labels are alike.
    """
    positive = np.asarray(labels) > 0.5
    count, others = int(positive.sum()), int((~positive).sum())
    if not count or not others:
        raise QueryError("AUC needs positive and negative labels; these are all alike")
    ranks = rankdata(np.asarray(scores, np.float64))
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * others))
