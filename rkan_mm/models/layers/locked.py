"""Formulas in the place of functions: chosen functions of a KAN layer fixed to a form, with constants that train."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rkan_mm.models.ops import as_type_of

from .grid_update import ELEMENTWISE
from .half import in_full
from .kan_layer import NO_STRIDES
from .kan_linear import of_rows
from .symbolic_trace import is_traced, layer_input


class Form(NamedTuple):
    """A function of one variable, and how complex it is taken to be."""

    function: Callable[[Tensor], Tensor]
    complexity: int


FORMS: dict[str, Form] = {  # checkpoints hold places in this table: add at its end
    'constant': Form(torch.zeros_like, 0),
    'x': Form(lambda z: z, 1),
    'x^2': Form(torch.square, 2),
    'x^3': Form(lambda z: z**3, 3),
    '|x|': Form(torch.abs, 2),
    'relu': Form(torch.relu, 2),
    'sin': Form(torch.sin, 3),
    'exp': Form(lambda z: z.clamp(max=30).exp(), 3),
    'tanh': Form(torch.tanh, 3),
    'arctan': Form(torch.atan, 3),
    'gaussian': Form(lambda z: (-z * z).exp(), 3),
    'lorentzian': Form(lambda z: 1 / (1 + z * z), 3),
    'softplus': Form(lambda z: F.softplus(z, 1, 36), 4),
    'silu': Form(F.silu, 4),
    'log': Form(lambda z: (1 + z.abs()).log(), 4),
    'sqrt': Form(lambda z: (z.abs() + 1e-12).sqrt(), 4),
}
"""By name; a function of a layer becomes ``a f(b x + c) + d``."""


@dataclass
class Fixed:
    """A function as a formula: ``a f(b x + c) + d``.

    Args:
        form: name in `FORMS`.
        constants: a, b, c, d.
    """

    form: str
    constants: tuple[float, float, float, float]

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f'no form {self.form!r}; there are {", ".join(FORMS)}')

    def __call__(self, x: Tensor) -> Tensor:
        a, b, c, d = self.constants
        return a * FORMS[self.form].function(b * x + c) + d


class LockedFunctions(nn.Module):
    """The fixed functions of a layer, whose sum is added to what the others give. Made by `lock`.

    Args:
        layer: the KAN layer.
        functions: by index, see :class:`rkan_mm.inspection.LayerFunctions`.
    """

    def __init__(self, layer: nn.Module, functions: Mapping[tuple[int, ...], Fixed]) -> None:
        super().__init__()
        like = layer.coefficient_parameter
        names = list(FORMS)
        self.constants = nn.Parameter(like.new_tensor([fixed.constants for fixed in functions.values()],
                                                      dtype=torch.promote_types(like.dtype, torch.float32)))
        places, forms = list(functions), [names.index(fixed.form) for fixed in functions.values()]
        self.register_buffer('forms', torch.tensor(forms, device=like.device))
        self.register_buffer('places', torch.tensor(places, device=like.device).reshape(len(places), -1))
        # input channel of each, forms with the functions that have them, and where each is added, (out, K, taps)
        shared, shape, kernel = is_shared(layer), functions_shape(layer), tuple(getattr(layer, 'kernel_size', ()))
        transposed, groups = getattr(layer, 'transposed', False), getattr(layer, 'groups', 1)
        outputs = 1 if shared else getattr(layer, 'out_channels', None) or layer.out_features
        selection = self.constants.detach().new_zeros(outputs, len(places), *kernel)
        rows: list[int] = []
        for k, place in enumerate(places):
            first, second = (0, 0) if shared else place[:2]
            inside = 0 if shared else first // (shape[0] // groups) * shape[1] + second  # in its group
            rows.append(first if transposed else inside)
            taken = (inside if transposed else first, k, *(place if shared else place[2:]))
            selection[taken] = 1
        self.register_buffer('selection', selection, persistent=False)
        # where the numbers are, so that a GPU is not waited for, and a CUDA graph can be captured
        self.register_buffer('rows', torch.tensor(rows, device=like.device), persistent=False)
        self._by_form = {names[form]: f'of_form_{form}' for form in forms}
        for form in {*forms}:
            functions_of_it = [k for k, each in enumerate(forms) if each == form]
            self.register_buffer(f'of_form_{form}', torch.tensor(functions_of_it, device=like.device), persistent=False)

    def functions(self) -> dict[tuple[int, ...], Fixed]:
        """The fixed functions by index, with their present constants."""
        names, constants = list(FORMS), self.constants.tolist()
        return {tuple(place): Fixed(names[form], tuple(own)) for place, form, own in
                zip(self.places.tolist(), self.forms.tolist(), constants, strict=True)}

    def add(self, layer: nn.Module, args: tuple, kwargs: dict, out: Tensor) -> Tensor:
        """Forward hook of the layer."""
        own = getattr(layer, 'locked', None)  # not this one in replicas of nn.DataParallel
        if own is None:
            return out
        x = layer_input(args, kwargs)
        if is_traced(x):  # the layer is a leaf, and runs this itself
            return out
        if x.is_nested:
            return out + of_rows(lambda rows: own._value(layer, in_full(rows), rows).to(out.dtype), x)
        value = own._value(layer, in_full(x.to_dense() if x.layout in NO_STRIDES else x), out)
        whole = out.to_dense() if out.is_mkldnn else out
        whole = whole + as_type_of(value, whole)
        return whole.to_mkldnn() if out.is_mkldnn else whole

    @torch.no_grad()
    def scale(self, layer: nn.Module, factor: Tensor) -> None:
        """Multiply the functions of each output by its factor, (outputs,)."""
        places = self.places
        outputs = places[:, 0]
        if getattr(layer, 'transposed', False):
            of_group = layer.out_channels // layer.groups
            outputs = places[:, 0] // (layer.in_channels // layer.groups) * of_group + places[:, 1]
        for column in (0, 3):  # a and d
            self.constants[:, column] *= factor[outputs].to(self.constants)

    def _value(self, layer: nn.Module, x: Tensor, out: Tensor) -> Tensor:
        rows, selection = self.rows, as_type_of(self.selection, x)
        if not hasattr(layer, 'kernel_size'):
            return F.linear(self._planes(x[..., rows], -1), selection)
        shared, spatial = is_shared(layer), selection.dim() - 2
        shape = x.shape
        if shared:
            x = x.reshape(-1, 1, *shape[-2:])
        batched = x.dim() == spatial + 2
        x = x if batched else x.unsqueeze(0)
        convolve = getattr(F, f'conv{spatial}d')
        if getattr(layer, 'transposed', False):
            sides = zip(out.shape[-spatial:], x.shape[2:], layer.stride, layer.padding, layer.dilation,
                        layer.kernel_size, strict=True)
            more = [o - ((n - 1) * s - 2 * p + d * (k - 1) + 1) for o, n, s, p, d, k in sides]
            value = F.conv_transpose2d(self._planes(x[:, rows], 1), selection.transpose(0, 1), None,
                                       layer.stride, layer.padding, more, 1, layer.dilation)
        else:
            if shared:
                x = F.pad(x, [side for pad in reversed(layer.padding) for side in (pad, pad)])
            else:
                mode = 'constant' if layer.padding_mode == 'zeros' else layer.padding_mode
                x = F.pad(x[:, rows], layer._reversed_padding_repeated_twice, mode=mode)
            planes = self._planes(x.expand(-1, len(rows), *x.shape[2:]) if shared else x, 1)
            value = convolve(planes, selection, None, layer.stride, 0, layer.dilation)
        if shared:
            return value.reshape(*shape[:-2], *value.shape[2:])
        return value if batched else value.squeeze(0)

    def _planes(self, x: Tensor, dim: int) -> Tensor:
        """Values of each function at its input, in the channels ``dim``."""
        shape = [1] * x.dim()
        shape[dim] = len(self.constants)
        a, b, c, d = (as_type_of(column.reshape(shape), x) for column in self.constants.unbind(1))
        z = b * x + c
        values = torch.zeros_like(z)
        for form, name in self._by_form.items():
            index = getattr(self, name)
            values = values.index_copy(dim, index, FORMS[form].function(z.index_select(dim, index)))
        return a * values + d


def is_shared(layer: nn.Module) -> bool:
    """Whether one kernel serves all channels."""
    return layer.coefficients_name == 'weight'


def functions_shape(layer: nn.Module) -> tuple[int, ...]:
    """Shape of the ordinary layer's weight: each place is a function."""
    shape = tuple(layer.coefficient_parameter.shape)
    return shape[1:] if is_shared(layer) else (*shape[:2], *shape[3:])


def lock(layer: nn.Module, functions: Mapping[tuple[int, ...], Fixed]) -> LockedFunctions:
    """Put formulas in the place of functions of a KAN layer; their constants are parameters and can be trained.

    The functions themselves are pruned. Names in the checkpoint: ``locked.constants``, ``locked.forms``,
    ``locked.places``; a layer that was not locked is locked by loading them.

    Args:
        layer: a KAN layer with an element-wise normalisation (``tanh`` or ``none``).
        functions: by index, e.g. (out, in, row, column); added to those that are locked already.

    Returns:
        The module in ``layer.locked``.

    Raises:
        ValueError: the functions have two arguments, or there is no such function.

    Example:
        >>> layer = KANLinear(2, 1)
        >>> _ = lock(layer, {(0, 1): Fixed('sin', (1.0, 2.0, 0.0, 0.0))})
        >>> layer.locked.constants
        Parameter containing:
        tensor([[1., 2., 0., 0.]], requires_grad=True)
    """
    if not (isinstance(layer.normalization, str) and layer.normalization in ELEMENTWISE):
        raise ValueError(f'lock: the functions of {type(layer).__name__} take what its normalization '
                         f'{layer.normalization!r} makes of several inputs; no formula of x can stand for them')
    shape = functions_shape(layer)
    for index in functions:
        if len(index) != len(shape) or not all(0 <= i < size for i, size in zip(index, shape, strict=True)):
            raise ValueError(f'lock: no function {tuple(index)} in {type(layer).__name__}, whose functions are {shape}')
    old = getattr(layer, 'locked', None)
    if old is not None:
        functions = {**old.functions(), **functions}
        unlock(layer)
    keep = torch.ones(shape, dtype=torch.bool, device=(
        layer.coefficient_parameter if layer.mask is None else layer.mask).device)
    for index in functions:
        keep[index] = False
    layer.keep(keep)
    _remove_hooks(layer)
    layer.locked, layer.formulas = LockedFunctions(layer, functions), len(functions)
    layer.register_forward_hook(layer.locked.add, prepend=True, with_kwargs=True)  # others see the whole output
    return layer.locked


def unlock(layer: nn.Module) -> None:
    """Take the formulas of a layer away; the functions in whose place they stood stay pruned."""
    _remove_hooks(layer)
    del layer.locked
    layer.formulas = 0


def _remove_hooks(layer: nn.Module) -> None:
    for key, hook in list(layer._forward_hooks.items()):
        if isinstance(getattr(hook, '__self__', None), LockedFunctions):
            del layer._forward_hooks[key]
            layer._forward_hooks_with_kwargs.pop(key, None)


def lock_for_loading(layer: nn.Module, state_dict: dict, prefix: str) -> None:
    """Lock a layer as the state_dict that it is about to load has it; do nothing where it has no lock."""
    places, forms = (state_dict.get(f'{prefix}locked.{name}') for name in ('places', 'forms'))
    if places is None or forms is None:
        return
    names, old = list(FORMS), getattr(layer, 'locked', None)
    functions = {tuple(place): Fixed(names[form], (math.nan,) * 4) for place, form in
                 zip(places.tolist(), forms.tolist(), strict=True)}
    if old is None or {place: fixed.form for place, fixed in old.functions().items()} != {
            place: fixed.form for place, fixed in functions.items()}:
        if old is not None:
            unlock(layer)
        lock(layer, functions)
