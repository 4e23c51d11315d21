"""Whether what a model is trained with runs in half precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from torch import Tensor

from rkan_mm.engine.run_error import PreflightError

from .config import dicts_with, kind


def check_precision(cfg: Config) -> None:
    """What half precision does not run, as it was tried on CPUs and is tried on this GPU."""
    wrapper = kind(cfg.get('optim_wrapper'))
    if wrapper not in ('AmpOptimWrapper', 'AutocastOptimWrapper'):
        return
    regions = any(True for part in ('rpn_head', 'roi_head') for _ in dicts_with(cfg.get('model'), part))
    if get_device() != 'cpu':
        lacking = [] if cfg.optim_wrapper.get('dtype') not in ('bfloat16', torch.bfloat16) else [
            name for name, run in _ops_of(cfg).items() if not _runs(run, torch.bfloat16)]
        if lacking:
            raise PreflightError(f'--amp-dtype bfloat16: mmcv has no {" and no ".join(lacking)} in bfloat16, and this '
                                 'model is trained with it: take float16, the default of --amp.')
    elif wrapper == 'AmpOptimWrapper':
        raise PreflightError('AMP in float16 (--amp, AmpOptimWrapper) needs a GPU and this machine has none: leave it '
                             + ('out.' if regions else 'out, or take --amp-dtype bfloat16.'))
    elif regions:
        raise PreflightError('--amp-dtype bfloat16 on a CPU: NMS and RoIAlign of mmcv, with which this model is '
                             'trained, run in float32 alone there: leave it out.')


def _ops_of(cfg: Config) -> dict[str, Callable[[Tensor], Any]]:
    """The ops of mmcv that a model is trained with and that take what autocast gives: tried on a map (1, 1, 4, 4)."""
    ops: dict[str, Callable[[Tensor], Any]] = {}
    for _, part in dicts_with(cfg.get('model'), 'type'):
        if kind(part) == 'RoIAlign':
            from mmcv.ops import roi_align
            ops['RoIAlign'] = lambda x: roi_align(x, x.new_tensor([[0, 0, 0, 2, 2]]), 2)
        elif kind(part) == 'FocalLoss' and part.get('use_sigmoid', True):
            from mmcv.ops import sigmoid_focal_loss
            ops['sigmoid_focal_loss'] = lambda x: sigmoid_focal_loss(
                x.reshape(4, 4), torch.zeros(4, dtype=torch.long, device=x.device))
    return ops


def _runs(op: Callable[[Tensor], Any], dtype: torch.dtype) -> bool:
    try:
        _tried(op, dtype)
    except NotImplementedError:
        return False
    except Exception:  # whatever else this machine's op says, the run will say it
        return True
    return True


def _tried(op: Callable[[Tensor], Any], dtype: torch.dtype) -> None:
    op(torch.zeros(1, 1, 4, 4, dtype=dtype, device=get_device()))
