"""Triton kernels between a KAN layer's parameters and the weights of planes that `fused_kernels` multiplies by."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pack(basis_weight, weight, scaler, mask, packed, inputs, outputs, TAPS: tl.constexpr, FUNCTIONS: tl.constexpr,
         BASE: tl.constexpr, CONSTANT: tl.constexpr, SCALED: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    """(out, in, functions, taps) -> (taps, P, in, out); of the planes the constant one is the last."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = index < inputs * outputs
    c = index // outputs
    pair = (index - c * outputs) * inputs + c
    planes: tl.constexpr = (BASE > 0) + FUNCTIONS + CONSTANT
    tap, plane = tl.program_id(1) // planes, tl.program_id(1) % planes
    factor = tl.zeros((BLOCK,), tl.float32) + 1.0
    if MASKED:
        factor = tl.load(mask + pair * TAPS + tap, there, 0.0).to(tl.float32)
    if plane < (BASE > 0):
        value = tl.load(weight + pair * TAPS + tap, there, 0.0).to(tl.float32) * factor
    else:
        f = (plane - (BASE > 0) + CONSTANT) % (FUNCTIONS + CONSTANT)
        if SCALED:
            factor *= tl.load(scaler + pair * TAPS + tap, there, 0.0).to(tl.float32)
        place = (pair * (FUNCTIONS + CONSTANT) + f) * TAPS + tap
        value = tl.load(basis_weight + place, there, 0.0).to(tl.float32) * factor
    place = tl.program_id(1) * inputs * outputs + index
    tl.store(packed + place, value.to(packed.dtype.element_ty), there)


@triton.jit(do_not_specialize=['chunks', 'inputs'])  # a 1 would be a Python int
def finish(sums, total, basis_weight, weight, scaler, mask, grad_basis_weight, grad_weight, grad_scaler, inputs,
           outputs, chunks, TAPS: tl.constexpr, FUNCTIONS: tl.constexpr, BASE: tl.constexpr, CONSTANT: tl.constexpr,
           SCALED: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    """From the chunks' gradients of the packed weights, and the outputs' summed ones, to those of the parameters."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tap = tl.program_id(1)
    there = index < inputs * outputs
    c = index // outputs
    o = index - c * outputs
    pair = o * inputs + c
    planes: tl.constexpr = (BASE > 0) + FUNCTIONS
    stride = TAPS * planes * inputs.to(tl.int64) * outputs
    factor = tl.zeros((BLOCK,), tl.float32) + 1.0
    if MASKED:
        factor = tl.load(mask + pair * TAPS + tap, there, 0.0).to(tl.float32)
    scale = tl.load(scaler + pair * TAPS + tap, there, 0.0).to(tl.float32) if SCALED else factor * 0.0 + 1.0
    by_scaler = tl.zeros((BLOCK,), tl.float32)
    for plane in range(planes + CONSTANT):
        slope = tl.zeros((BLOCK,), tl.float32)
        if plane < planes:
            for chunk in range(chunks):
                place = sums + chunk * stride + (tap * planes + plane) * inputs * outputs + index
                slope += tl.load(place, there, 0.0)
        else:
            slope = tl.load(total + o, there, 0.0)
        slope *= factor
        if plane < (BASE > 0):
            tl.store(grad_weight + pair * TAPS + tap, slope.to(grad_weight.dtype.element_ty), there)
        else:
            f = (plane - (BASE > 0) + CONSTANT) % (FUNCTIONS + CONSTANT)
            place = (pair * (FUNCTIONS + CONSTANT) + f) * TAPS + tap
            if SCALED:
                by_scaler += slope * tl.load(basis_weight + place, there, 0.0).to(tl.float32)
            slope *= scale
            tl.store(grad_basis_weight + place, slope.to(grad_basis_weight.dtype.element_ty), there)
    if SCALED:
        tl.store(grad_scaler + pair * TAPS + tap, by_scaler.to(grad_scaler.dtype.element_ty), there)
