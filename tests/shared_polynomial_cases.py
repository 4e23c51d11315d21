"""Cases of the shared polynomial convolution, and the check of one form of it against PyTorch in double precision."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rkan_mm.models.ops import identity, shared_polynomial_conv2d_torch

CASES = dict(
    plain=dict(),
    stride=dict(stride=(2, 2), degree=3),
    strides_on_an_even_size=dict(stride=(2, 2), shape=(2, 3, 8, 14)),
    no_base=dict(base=False, degree=1),
    no_normalisation=dict(squash=False, degree=4),
    no_normalisation_and_no_base=dict(squash=False, base=False, degree=5),
    dilation=dict(dilation=(2, 3), padding=(2, 3)),
    dilation_and_stride=dict(dilation=(2, 2), stride=(2, 2), padding=(3, 1), shape=(2, 3, 11, 17)),
    rectangular=dict(kernel=(1, 4), stride=(3, 1), padding=(0, 2), shape=(2, 2, 7, 19)),
    large_kernel=dict(kernel=(5, 7), padding=(2, 3), shape=(1, 2, 6, 9), degree=2),
    pointwise_with_stride=dict(kernel=(1, 1), padding=(0, 0), stride=(2, 3)),
    kernel_shorter_than_stride=dict(kernel=(2, 2), stride=(3, 4), padding=(1, 0), shape=(2, 2, 9, 13)),
    even_kernel=dict(kernel=(2, 2), padding=(0, 0), stride=(1, 2)),
    padding_beyond_the_kernel=dict(padding=(4, 5), shape=(1, 2, 3, 4), stride=(1, 2)),
    one_output=dict(shape=(2, 5, 3, 3), padding=(0, 0)),
    one_pixel=dict(shape=(3, 4, 1, 1), degree=3),
    one_column=dict(shape=(2, 2, 9, 1)),
    batch_of_one=dict(shape=(1, 70, 7, 7), degree=2),
    bands=dict(shape=(1, 2, 150, 70), degree=3),
    bands_with_stride=dict(shape=(1, 2, 151, 90), stride=(2, 2), degree=2),
    wide=dict(shape=(1, 1, 4, 6000)),
    degree_6=dict(degree=6),
    detection=dict(shape=(1, 6, 25, 42), degree=2),
)


def tensors(shape=(2, 3, 7, 9), kernel=(3, 3), degree=2, base=True, scale=1.0, **_) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    sizes = (shape, (degree + 1, *kernel), kernel if base else None)
    x, weight, base_weight = (None if s is None else torch.randn(s, generator=generator) for s in sizes)
    return [x * scale, weight, base_weight]


def settings(squash=True, stride=(1, 1), padding=(1, 1), dilation=(1, 1), **_) -> dict:
    return dict(normalize=torch.tanh if squash else identity, stride=stride, padding=padding, dilation=dilation)


def values_and_gradients(form: Callable, inputs: list[Tensor | None], options: dict) -> list[Tensor]:
    """The output, and the gradients of all inputs for a fixed gradient of the output."""
    leaves = [t if t is None else t.detach().requires_grad_() for t in inputs]
    y = form(*leaves, **options)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y.detach(), *torch.autograd.grad(y, [t for t in leaves if t is not None], grad)]


def check(form: Callable, inputs: list[Tensor | None], options: dict, tolerance: float = 2e-6,
          oracle: Callable = shared_polynomial_conv2d_torch) -> list[Tensor]:
    """Compare a form with the oracle, relative to the largest value; returns what the form gave."""
    right = values_and_gradients(oracle, [t if t is None else t.double() for t in inputs], options)
    results = values_and_gradients(form, inputs, options)
    for result, expected in zip(results, right, strict=True):
        assert result.shape == expected.shape
        error = (result.double() - expected).abs().max() / expected.abs().max()
        assert error <= tolerance, f'{tuple(result.shape)}: {error}'
    return results
