"""The gate before every kernel of this package: which tensors it may read, and the way round it for all others.

A kernel is a C function that believes what it is told of sizes. So no pointer is taken but by :func:`pointer`, which is
told how many numbers the kernel will touch there, and a caller asks :func:`readable` first and takes PyTorch's own
operations where the answer is no.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .compiled import kernels_wanted

PLAIN = (Tensor, nn.Parameter)
STRIDED = torch.strided
SINGLE = (torch.float32,)
HALF = (torch.float16, torch.bfloat16)
FLOATS = (torch.float32, torch.float64, *HALF)
PRE_DISPATCH = torch._C.DispatchKey.PreDispatch


class _Watched(NamedTuple):
    """Of a module: by hooks on itself, and by these or hooks on all modules."""

    itself: bool
    at_all: bool


class _Recomputed(threading.local):
    """What was said in the first pass, while a thread computes something again."""

    transformed: bool | None = None
    watched: dict[nn.Module, _Watched] | None = None

    def __init__(self) -> None:
        self.before: list[Any] = []


_recomputed = _Recomputed()


def is_transformed() -> bool:
    """Whether somebody looks at the single operations: a compiler or tracer, a dispatch mode, torch.func."""
    if (torch.compiler.is_compiling() or torch._C._is_tracing() or forward_ad._current_level >= 0
            or torch._C._are_functorch_transforms_active()
            or torch._C._dispatch_tls_is_dispatch_key_included(PRE_DISPATCH)):
        return True
    first = _recomputed.transformed
    return _get_current_dispatch_mode() is not None if first is None else first


def is_recorded() -> bool:
    """Whether operations become a graph, or a mode sees them: not the time to ask for numbers."""
    return (torch.compiler.is_compiling() or torch._C._is_tracing() or is_traced_early()
            or _get_current_dispatch_mode() is not None)


def is_traced_early() -> bool:
    """Whether ``make_fx(pre_dispatch=True)`` looks on, before autograd and autocast."""
    return torch._C._dispatch_tls_is_dispatch_key_included(PRE_DISPATCH)


def is_watched(module: nn.Module) -> bool:
    """Whether a call of the module runs anything but the ``forward`` of its class: a hook, on it or on all modules."""
    first = _recomputed.watched
    if first is not None and module in first:
        return first[module].at_all
    return has_hooks(module) or bool(nn.modules.module._has_any_global_hook())


def has_hooks(module: nn.Module) -> bool:
    """Whether the module has a hook or a ``forward`` of its own."""
    first = _recomputed.watched
    if first is not None and module in first:
        return first[module].itself
    own = module.__dict__
    return bool('forward' in own or own['_forward_hooks'] or own['_forward_pre_hooks'] or own['_backward_hooks']
                or own['_backward_pre_hooks'])


class SameForm:
    """What is computed again takes kernels or not as it did when this was made: it must save the same tensors.

    A dispatch mode such as ``FlopCounterMode`` or a hook on one of ``modules`` may have come or gone meanwhile, or
    inference mode come.
    """

    def __init__(self, modules: Iterable[nn.Module] = ()) -> None:
        self.transformed = is_transformed()
        self.watched = {module: _Watched(has_hooks(module), is_watched(module)) for module in modules}

    @property
    def before(self) -> list[Any]:
        """What this thread comes back to: another one may compute the same again, of the same graph."""
        return _recomputed.before

    def __enter__(self) -> None:
        mode = torch.inference_mode(False)
        self.before.append((_recomputed.transformed, _recomputed.watched, mode))
        _recomputed.transformed, _recomputed.watched = self.transformed, self.watched
        mode.__enter__()

    def __exit__(self, *error) -> None:
        _recomputed.transformed, _recomputed.watched, mode = self.before.pop()
        mode.__exit__(*error)


def readable(*tensors: Tensor | None, dtypes: Sequence[torch.dtype] = SINGLE, device: str = 'cpu') -> bool:
    """Whether kernels may take these tensors: ordinary ones of these dtypes, with numbers in this device's memory.

    Not so are subclasses, sparse and other layouts, lazily negated views, tensors without elements or without storage
    (meta, freed by FSDP, left over from a transform), in grad mode those of inference mode, which PyTorch may refuse to
    save, and all of them while a transform is under way or no kernels are wanted, be it by now.
    """
    if is_transformed() or not kernels_wanted():
        return False
    on_cpu, saved = device == 'cpu', torch.is_grad_enabled()
    for t in tensors:
        if t is not None and not (_is_readable(t, dtypes, on_cpu) and not (saved and t.is_inference())):
            return False
    return True


def _is_readable(t: Tensor, dtypes: Sequence[torch.dtype], on_cpu: bool) -> bool:
    try:
        return (type(t) in PLAIN and t.dtype in dtypes and (t.is_cpu if on_cpu else t.is_cuda)
                and t.layout is STRIDED and not t.is_neg() and t.data_ptr() != 0 and _holds_all(t))
    except RuntimeError:  # there is no storage to point at
        return False


def _holds_all(t: Tensor) -> bool:
    """Whether there are elements, and all of them lie in the tensor's storage, which can have been resized."""
    needed = t.nbytes
    if needed and not t.is_contiguous():
        needed = (sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) + 1) * t.element_size()
    return 0 < needed <= t.untyped_storage().nbytes() - t.storage_offset() * t.element_size()


def fingerprint(t: Tensor) -> Hashable:
    """What changes when somebody writes to a tensor or puts other memory under it; None where nobody can tell.

    On the CPU its bytes, since writing to ``t.data`` is known to nobody else: for small tensors. On a GPU, which is not
    to be waited for, address and version.
    """
    if is_recorded():
        return None
    if _is_readable(t, FLOATS, True):
        t = t.contiguous()
        return ctypes.string_at(t.data_ptr(), t.nbytes)
    if not _is_readable(t, FLOATS, False) or torch.cuda.is_current_stream_capturing():
        return None
    return t.data_ptr(), t.dtype, None if t.is_inference() else t._version


def is_channels_last(x: Tensor) -> bool:
    """Whether channels come last in memory, and in no other order."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def refuse_numbers_to_meta(weight: Tensor, x: object, ordinary: Callable[[Tensor], object]) -> None:
    """Raise for numbers that come to weights on the meta device.

    PyTorch's convolutions then give what lies in memory, and its linear layer reads an input whose storage is gone.

    Args:
        weight: of the layer.
        x: its input, which may be anything.
        ordinary: called with the input on the meta device, to say what else is wrong with it.

    Raises:
        RuntimeError: the sentence of PyTorch's linear layer, or that of ``ordinary``.
    """
    if weight.is_meta and isinstance(x, Tensor) and not x.is_meta:
        ordinary(x.to('meta'))
        raise RuntimeError(f'Tensor on device meta is not on the expected device {x.device}!')


def refuse_freed(x: Tensor) -> None:
    """Raise for an input whose storage was emptied: PyTorch's element-wise operations read it, and end the process.

    Raises:
        RuntimeError: the sentence of PyTorch's linear layer and convolutions.
    """
    if torch.compiler.is_compiling():
        return
    try:
        freed = type(x) in PLAIN and not x.untyped_storage().nbytes() and x.numel() > 0
    except RuntimeError:  # no storage at all: sparse, or of a transform
        return
    if freed and not x.is_meta and not x._is_zerotensor():
        raise RuntimeError('The tensor has a non-zero number of elements, but its data is not allocated yet: '
                           'its storage was resized to 0')


def autocast_dtype(device: str) -> torch.dtype | None:
    """What autocast computes in on a type of device; None where it is off."""
    if device == 'meta':
        return None
    if hasattr(torch, 'get_autocast_dtype'):
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    if device == 'cpu':  # torch < 2.4
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None


def pointer(tensor: Tensor | None, count: int) -> ctypes.c_void_p:
    """Where the ``count`` numbers of a tensor start, in single precision on the CPU; null for None.

    They lie side by side, in the order of ``torch.contiguous_format`` or ``torch.channels_last``.

    Raises:
        RuntimeError: the tensor does not own so many such numbers. It is a fault of the caller, which has asked
            :func:`readable` too little; no kernel is run.
    """
    if tensor is None:
        return ctypes.c_void_p(None)
    if not (tensor.numel() == count and _is_readable(tensor, SINGLE, True)
            and (tensor.is_contiguous()
                 or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)))):
        raise RuntimeError(f'rkan_mm: a kernel needs {count} numbers of torch.float32 side by side in memory, got a '
                           f'{type(tensor).__name__} {tuple(tensor.shape)} of {tensor.dtype} on {tensor.device}')
    return ctypes.c_void_p(tensor.data_ptr())


def gradients(plain: Callable[..., Tensor], inputs: Sequence[Tensor | None], wanted: Sequence[bool],
              grad: Tensor) -> list[Tensor | None]:
    """The gradients of ``plain(*inputs)`` by PyTorch, where a kernel cannot give them.

    Where grad mode is on (``create_graph``) they can be differentiated again. Autocast plays no part.
    """
    again = torch.is_grad_enabled()
    if not again:
        inputs = [t if t is None else t.detach().requires_grad_(want) for t, want in zip(inputs, wanted, strict=True)]
    with torch.enable_grad(), torch.autocast(grad.device.type, enabled=False):
        views = [t if t is None else t.view_as(t) for t in inputs]  # without hooks; see also recompute._no_leaf
        found = iter(torch.autograd.grad(plain(*views), [t for t, want in zip(views, wanted, strict=True) if want],
                                         grad, create_graph=again))
    return [next(found) if want else None for want in wanted]
