"""The RKAN block and the fusion of one stage, and how they join what the stage gives."""

from __future__ import annotations

import threading
from typing import Any

import torch
from mmengine.model import BaseModule
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from rkan_mm.models.layers.fusion import Addition, SEFusion
from rkan_mm.models.layers.recompute import can_recompute
from rkan_mm.models.layers.symbolic_trace import is_traced
from rkan_mm.models.ops import identity, is_transformed, static_shape

from .place import Place


def stage_input(args: tuple, kwargs: dict) -> Any:
    """What a stage is called with, first."""
    return args[0] if args else next(iter(kwargs.values()), None)


def token_size(args: tuple, kwargs: dict) -> tuple[int, int] | None:
    """Height and width of tokens, where a stage is called with them: its second argument."""
    size = (*args, *kwargs.values())[1:2]
    return size[0] if size and isinstance(size[0], tuple) and len(size[0]) == 2 else None


def feature_map(x: Any, size: tuple[int, int] | None) -> Any:
    """What a stage takes or gives as (B, C, H, W): tokens (B, H W, C) too, if it is called with their (H, W)."""
    if size is not None and isinstance(x, Tensor) and x.dim() == 3:
        return x.reshape(x.shape[0], *size, static_shape(x)[2]).permute(0, 3, 1, 2)
    return x


@torch.fx.wrap
def fitted(residual: Tensor, x: Tensor, out: Tensor, stage: str) -> Tensor:
    """The residual of a stage that maps x to out, in the shape of out.

    A stage that pools odd maps rounds their size down, not up. One with several branches in the batch (TridentNet) gets
    the residual in each.

    Raises:
        ValueError: the shapes differ by more than that.
    """
    ours, theirs = static_shape(residual), static_shape(out)
    if ours[0] != theirs[0] and ours[0] and theirs[0] % ours[0] == 0:
        residual = residual.repeat(theirs[0] // ours[0], 1, 1, 1)
        ours = static_shape(residual)
    if ours[:2] != theirs[:2] or not all(0 <= n - m <= 1 for n, m in zip(ours[2:], theirs[2:], strict=True)):
        raise ValueError(f'RKANet: stage {stage!r} maps {tuple(x.shape)} to {tuple(out.shape)}, but its RKAN block to '
                         f'{tuple(residual.shape)}; pad the images so that every stage sees even sizes, '
                         'e.g. pad_size_divisor=32 in the data preprocessor')
    if not is_transformed() and ours == theirs:  # else shapes may be symbols
        return residual
    return residual[..., :out.shape[2], :out.shape[3]]


class _Inputs(threading.local):
    """Of the stage under way, for each thread its own: its input, and whether it ran. A copy begins without any."""

    def __init__(self) -> None:
        self.stack, self.ran = [], False

    def __reduce__(self) -> tuple:
        return type(self), ()


class _InputsAgain(WeakTensorKeyDictionary):
    """Inputs of stages over two modules by those of their last module, which a checkpoint alone may run again."""

    def __reduce__(self) -> tuple:
        return type(self), ()

    def __deepcopy__(self, memo: dict) -> _InputsAgain:
        return type(self)()


class BridgedStage(BaseModule):
    """The RKAN block and fusion of one stage.

    Args:
        name: of the stage, ``'first:last'`` if it spans two modules.
        block: (B, C, H, W) -> the shape of the stage's output.
        fusion: (output, residual) -> output.
        frozen: whether they are frozen: no gradients, norms in eval mode.
        norm_eval: whether the batch norms of the block stay in eval mode.
    """

    def __init__(self, name: str, block: nn.Module, fusion: nn.Module, frozen: bool = False,
                 norm_eval: bool = False) -> None:
        super().__init__()
        self.name, self.frozen, self.norm_eval = name, frozen, norm_eval
        self.block = block
        self.fusion = fusion
        self._inputs, self._again = _Inputs(), _InputsAgain()
        first, _, last = name.partition(':')
        self.first, self.last = first, last or first
        if self.first == self.last:
            self.places = [Place(self.first, self, after=True)]
        else:
            self.places = [Place(self.first, self, before=True), Place(self.last, self, after=True)]
        self._freeze()

    @property
    def starts_at_zero(self) -> bool:
        """Whether a new block leaves the output of its stage as it is."""
        return getattr(self.block, 'residual_init', None) == 0 and isinstance(self.fusion, (Addition, SEFusion))

    def before(self, name: str, args: tuple, kwargs: dict) -> None:
        self._inputs.stack = [feature_map(stage_input(args, kwargs), token_size(args, kwargs))]

    def after(self, name: str, args: tuple, kwargs: dict, out: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self._inputs.ran = True
        size = token_size(args, kwargs)
        x = self._input_of_span(stage_input(args, kwargs)) if self.first != self.last else feature_map(
            stage_input(args, kwargs), size)
        fused = self.__dict__.get('_acting', self)(x, feature_map(out, size))
        if is_traced(fused):  # a node in the stage, the last of it, by whose name others ask for its output
            return fused.tracer.create_proxy('call_function', identity, (fused,), {})
        if size is not None and out.dim() == 3:
            return fused.permute(0, 2, 3, 1).flatten(1, 2)
        return fused

    def let_act(self, module: nn.Module) -> None:
        """Have a module called instead of this one: what wraps it, perhaps."""
        self.__dict__['_acting'] = module  # not a child

    def _input_of_span(self, of_last: Any) -> Any:
        keeps = isinstance(of_last, Tensor) and can_recompute()
        again = self._again.get(of_last) if keeps else None
        if again is not None:
            return again
        if not self._inputs.stack:
            raise RuntimeError(f'RKANet: stage {self.name!r}: {self.last!r} was called, but {self.first!r} was not '
                               'called since the call before; a stage over two modules needs both in turn, and '
                               'activation checkpoints of each alone need use_reentrant=False')
        x = self._inputs.stack.pop()
        if keeps and x is not of_last:
            self._again[of_last] = x
        return x

    def begin(self) -> None:
        """Before a pass of the backbone."""
        self._inputs.ran = False

    def check_run(self, backbone: nn.Module) -> None:
        """After a pass of the backbone.

        Raises:
            RuntimeError: it did not call the stage, and no compiler or tracer knows it better.
        """
        if self._inputs.ran or any(isinstance(module, (torch.jit.ScriptModule, torch.fx.GraphModule)) or
                                   module._compiled_call_impl is not None or hasattr(module, '_orig_mod')
                                   for module in backbone.modules()):
            return
        parts = [f'{self.last}.{name}' for name, _ in backbone.get_submodule(self.last).named_children()]
        raise RuntimeError(
            f'RKANet: {type(backbone).__name__} did not call {self.last!r}, so the RKAN block of stage {self.name!r} '
            'had no part in what came out' + (
                '. Where it calls the parts of the stage one by one, as timm does under set_grad_checkpointing, name '
                f"them: stages=('{':'.join(dict.fromkeys((parts[0], parts[-1])))}', )" if parts else ''))

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """Input and output of the stage -> the fused output; called as a module, so that hooks on it see each."""
        return self.fuse(x, out)

    def fuse(self, x: Tensor, out: Tensor) -> Tensor:
        """The output of the stage with the residual of its block, given the stage's input."""
        return self.fusion(out, fitted(self._residual(x), x, out, self.name))

    def _residual(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.block(x)
        try:
            return self.block(x)
        except ValueError as error:
            if 'more than 1 value per channel' not in str(error):
                raise
            raise ValueError(
                f'RKANet: stage {self.name!r}: {error}. The batch norms of its block cannot train on one pixel of one '
                "image. Give the block other norms, e.g. block=dict(type='RKANBlock', norm_cfg=dict(type='GN', "
                'num_groups=1)), keep their statistics by norm_eval=True of the RKANet, or train on more or larger '
                'images') from error

    def train(self, mode: bool = True) -> BridgedStage:
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        for module in self.modules() if self.frozen or self.norm_eval else ():
            if isinstance(module, _BatchNorm):
                module.training = False
        if self.frozen:
            for child in self.children():
                child.train(False)
            for parameter in self.parameters():
                parameter.requires_grad = False
