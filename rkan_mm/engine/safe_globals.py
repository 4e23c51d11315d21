"""Let torch's safe unpickler read the checkpoints that mmengine writes."""

from __future__ import annotations

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version


def _history_method(owner: type, name: str):
    """What mmengine's checkpoints need of ``getattr``: the statistics of a HistoryBuffer, and nothing else."""
    if owner is not HistoryBuffer or name not in HistoryBuffer._statistics_methods:
        raise TypeError(f'checkpoint asks for attribute {name!r} of {owner!r}, which mmengine does not write')
    return HistoryBuffer._statistics_methods[name]


def allow_mmengine_globals() -> None:
    """Name the classes in mmengine's checkpoints as harmless, so that ``weights_only=True`` reads them.

    From torch 2.6 on this is the default of ``torch.load``, and mmengine 0.10.7 cannot resume its own checkpoints
    without it: they hold the logged history in a ``HistoryBuffer`` of numpy arrays.
    """
    if digit_version(torch.__version__) < digit_version('2.6'):
        return
    HistoryBuffer()  # the first one registers the statistics
    core = np._core if hasattr(np, '_core') else np.core
    torch.serialization.add_safe_globals([
        HistoryBuffer, (_history_method, 'builtins.getattr'), np.ndarray, np.dtype, core.multiarray._reconstruct,
        core.multiarray.scalar, *(type(np.dtype(kind)) for kind in ('float64', 'float32', 'int64', 'int32', 'bool')),
    ])
