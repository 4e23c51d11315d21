"""Let torch's safe unpickler read the checkpoints that mmengine writes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.utils import digit_version


class _Cycle:
    """Stands for the class of OneCycleLR, of which a checkpoint needs these, and which nothing is to build."""

    _annealing_cos = staticmethod(OneCycleParamScheduler._annealing_cos)
    _annealing_linear = staticmethod(OneCycleParamScheduler._annealing_linear)


CYCLE = _Cycle()


def _attribute(owner: Any, name: str) -> Any:
    """What mmengine's checkpoints need of ``getattr``: the statistics of a HistoryBuffer, the curves of OneCycleLR."""
    if owner is CYCLE and name in ('_annealing_cos', '_annealing_linear'):
        return getattr(CYCLE, name)
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
    arrays = (np._core if hasattr(np, '_core') else np.core).multiarray
    torch.serialization.add_safe_globals([
        HistoryBuffer, (_attribute, 'builtins.getattr'), np.ndarray, np.dtype,
        (CYCLE, f'{OneCycleParamScheduler.__module__}.{OneCycleParamScheduler.__name__}'),
        *((getattr(arrays, name), f'numpy.{core}.multiarray.{name}')  # under numpy 2 and 1, whichever reads it
          for core in ('_core', 'core') for name in ('_reconstruct', 'scalar')),
        *{type(np.dtype(code)) for code in np.typecodes['All'] if code != 'O'},
    ])
