"""Run the Triton kernels in Triton's interpreter on the CPU, against PyTorch in double precision."""

import os

os.environ['TRITON_INTERPRET'] = '1'  # read when triton is imported

import torch
from shared_polynomial_cases import CASES, check, settings, tensors, values_and_gradients

from rkan_mm.models.ops import identity, shared_polynomial_conv_triton
from rkan_mm.models.ops.shared_polynomial_conv import _SharedPolynomialConv
from rkan_mm.models.ops.shared_polynomial_conv_torch import Window, agrees_with_pytorch, shared_polynomial_conv2d_torch

TAKEN = ('no_base', 'no_normalisation', 'dilation_and_stride', 'rectangular', 'kernel_shorter_than_stride',
         'pointwise_with_stride', 'padding_beyond_the_kernel')


def form(x, weight, base_weight, normalize, stride, padding, dilation):
    return _SharedPolynomialConv.apply(x, weight, base_weight, normalize is not identity,
                                       Window(stride, padding, dilation), shared_polynomial_conv_triton)


def main() -> None:
    forward, backward = shared_polynomial_conv_triton.forward, shared_polynomial_conv_triton.backward
    assert agrees_with_pytorch(forward, backward, 'cpu')
    for name in TAKEN:
        print(name, flush=True)
        check(form, tensors(**CASES[name]), settings(**CASES[name]))

    print('several blocks in several chunks', flush=True)
    shared_polynomial_conv_triton.BLOCK, shared_polynomial_conv_triton.MAX_CHUNKS = 128, 2
    first, second = (check(form, tensors((2, 3, 9, 13)), settings()) for _ in range(2))
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))
    shared_polynomial_conv_triton.BLOCK = 1024

    for dtype in (torch.float16, torch.bfloat16):
        print(dtype, flush=True)
        inputs = [t.to(dtype) for t in tensors(degree=3, scale=0.5)]
        right = values_and_gradients(shared_polynomial_conv2d_torch, [t.double() for t in inputs], settings())
        for result, expected in zip(values_and_gradients(form, inputs, settings()), right, strict=True):
            assert result.dtype == dtype
            assert ((result - expected).norm() / expected.norm()) < 2 * torch.finfo(dtype).eps

    print('values that are not finite', flush=True)
    x, *weights = tensors(shape=(1, 2, 9, 9))
    x[0, 0, 4, 4], x[0, 1, 4, 4] = torch.nan, torch.inf
    torch.testing.assert_close(form(x, *weights, **settings()),
                               shared_polynomial_conv2d_torch(x, *weights, **settings()), equal_nan=True)


if __name__ == '__main__':
    main()
