"""What the training of a detector needs on each GPU, counted without one."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIMIZERS, init_default_scope
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from rkan_mm.apis.command_line import at_least, command_line, file_to_write, positive
from rkan_mm.apis.runner import load_config
from rkan_mm.preflight import PreflightError
from rkan_mm.preflight.building import building
from rkan_mm.preflight.config import kind, scope
from rkan_mm.preflight.red import warn_in_red

from .steps import annotated

GIB = 2**30


def activations(model_cfg: dict, size: int, objects: int) -> int:
    """Bytes that autograd keeps for the backward pass of one image of ``size`` x ``size`` pixels, fp32.

    Args:
        objects: annotated in the image.
    """
    model = MMENGINE_MODELS.build(model_cfg).train()
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    data = model.data_preprocessor(annotated(1, (size, size), objects, num_classes=1), True)
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sum(loss.sum() for value in model.loss(data['inputs'], data['data_samples']).values()
            for loss in (value if isinstance(value, (list, tuple)) else [value]) if loss.requires_grad)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def states(model_cfg: dict, moments: int, averages: int = 0) -> int:
    """Bytes of the parameters and moving averages, and of gradients and ``moments`` for those that are trained."""
    model = MMENGINE_MODELS.build(model_cfg)
    model.train()  # where some backbones of mm freeze their stages
    parameters = list(model.parameters())
    return 4 * sum(p.numel() * (1 + averages + (1 + moments if p.requires_grad else 0)) for p in parameters)


def moments_of(cfg: Config) -> int:
    """Numbers that the optimizer of a config keeps for each that is trained, as its step on a parameter has them.

    1, as SGD's, where the config has none, or several.
    """
    optimizer_cfg = (cfg.get('optim_wrapper') or {}).get('optimizer')
    if not optimizer_cfg:
        return 1
    parameter = nn.Parameter(torch.zeros(8, 8))
    parameter.grad = torch.ones_like(parameter)
    optimizer = OPTIMIZERS.build({**optimizer_cfg, 'params': [parameter]})
    optimizer.step()
    kept = (value for value in optimizer.state[parameter].values() if isinstance(value, Tensor))
    return sum(value.numel() for value in kept) // parameter.numel()


def main(argv: Sequence[str] | None = None) -> float:
    """Command line of tools/memory.py; returns GiB."""
    parser = command_line(__doc__, 'configs/mask-rcnn_rkanet50_fpn_1x_coco.py --batch 16')
    parser.add_argument('config', help='config of a detector')
    parser.add_argument('--size', type=at_least(32), default=640, help='side of the images')
    parser.add_argument('--batch', type=positive, default=8, help='images a GPU')
    parser.add_argument('--objects', type=at_least(0), default=8, help='annotated objects an image')
    parser.add_argument('--moments', type=at_least(0), help='numbers that the optimizer keeps for each weight, such as '
                        '1 for SGD, 2 for Adam (default: those of the config)')
    parser.add_argument('--out', type=file_to_write, help='json file for the result')
    args = parser.parse_args(argv)
    cfg = load_config(args.config)
    if scope(cfg) != 'mmdet':
        raise PreflightError(f'{args.config} is of {scope(cfg)}; the memory of detectors of mmdet is counted.')
    init_default_scope('mmdet')
    model_cfg = cfg.model
    torch.manual_seed(0)
    moments = args.moments
    if moments is None:
        try:
            moments = moments_of(cfg)
        except Exception as error:  # such as one that wants a GPU, or several processes
            moments = 1
            warn_in_red(f'The optimizer of {args.config} cannot be tried here ({error}): it is counted with one number '
                        'for each weight, as SGD has. Give what it keeps by --moments.')
    averages = sum(kind(hook).endswith('EMAHook') for hook in cfg.get('custom_hooks') or ())
    with building('The model cannot be built'):
        fixed = states(copy.deepcopy(model_cfg), moments, averages)
    table = Table(title=f'{args.config}: {args.batch} x {args.size} px a GPU, {args.objects} objects an image')
    kept = f'weights, {"averages, " if averages else ""}gradients, optimizer'
    for column in ('', 'activations an image', kept, 'together, GiB'):
        table.add_column(column, justify='left' if not column else 'right')
    image = activations(copy.deepcopy(model_cfg), args.size, args.objects)
    total = (fixed + args.batch * image) / GIB
    table.add_row('fp32', f'{image / GIB:.2f}', f'{fixed / GIB:.2f}', f'{total:.1f}')
    console = Console(width=120)
    console.print(table)
    console.print('Kept for the backward pass, counted; to it come the CUDA context, workspaces and what is under way.')
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        result = dict(config=args.config, size=args.size, batch=args.batch, bytes=total * GIB)
        Path(args.out).write_text(json.dumps(result))
    return total
