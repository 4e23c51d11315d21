"""Which of many are looked at."""

from __future__ import annotations

import numpy as np


def spread(total: int, number: int) -> list[int]:
    """``number`` of ``total`` places, evenly spread, all of fewer: data sets are often sorted by class.

    Example:
        >>> spread(10, 4)
        [0, 3, 6, 9]
    """
    return np.unique(np.linspace(0, total - 1, min(number, total)).round().astype(int)).tolist()
