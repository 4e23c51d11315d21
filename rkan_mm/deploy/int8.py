"""ONNX files whose convolutions and matrix products compute with integers of 8 bits, calibrated on pictures."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .errors import UnsupportedModelError
from .files import describe

OPERATORS = ('Conv', 'Gemm', 'MatMul')
"""What is quantised: the weights by output channel, their inputs by tensor. All else remains float."""


def quantize(source: str | Path, path: str | Path, pictures: Sequence[np.ndarray], float_parts: str = '',
             only: str = '') -> int:
    """Static quantisation by onnxruntime, with QuantizeLinear and DequantizeLinear around what becomes int8.

    Args:
        source: ONNX file in float32.
        path: of the file to write.
        pictures: as the file takes them, (B, C, H, W) of uint8, from which ranges are learned.
        float_parts: regular expression; nodes whose name it is found in remain float. A node is named after the module
            that it came from, e.g. ``/backbone/layers/layers.0/Conv``.
        only: ``weights`` or ``activations``; the other has 16 bits (and the file opset 21): what each costs.

    Returns:
        How many nodes are quantised.

    Raises:
        UnsupportedModelError: there is nothing to quantise, by this expression.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        """The pictures, once."""

        def __init__(self) -> None:
            self.rest: Iterator[np.ndarray] = iter(pictures)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.rest, None)
            return None if image is None else {'image': image}

    texts = {entry.key: entry.value for entry in onnx.load(str(source)).metadata_props}
    with tempfile.TemporaryDirectory() as folder:
        prepared = str(Path(folder, 'prepared.onnx'))  # shapes inferred, norms folded
        quant_pre_process(str(source), prepared, skip_symbolic_shape=True)
        nodes = [node.name for node in onnx.load(prepared).graph.node if node.op_type in OPERATORS]
        kept = [name for name in nodes if float_parts and re.search(float_parts, name)]
        if len(kept) == len(nodes):
            raise UnsupportedModelError(f'Nothing to quantise: of {len(nodes)} nodes with weights, {len(kept)} are to '
                                        f'remain float by {float_parts!r}.')
        quantize_static(prepared, str(path), Reader(), QuantFormat.QDQ, list(OPERATORS), per_channel=True,
                        activation_type=QuantType.QUInt16 if only == 'weights' else QuantType.QUInt8,
                        weight_type=QuantType.QInt16 if only == 'activations' else QuantType.QInt8,
                        nodes_to_quantize=[name for name in nodes if name not in kept])
    describe(str(path), texts)
    return len(nodes) - len(kept)


def round_weights(model: nn.Module, names: str) -> list[str]:
    """Round parameters to what 8 bits hold, by their first dimension, in place; they remain float.

    It tells which of the weights that one convolution of the file holds, such as base branch and coefficients, loses
    accuracy.

    Args:
        model: to round, fused.
        names: regular expression; parameters of two and more dimensions whose name it is found in are rounded.

    Returns:
        Their names.

    Raises:
        UnsupportedModelError: there is none.
    """
    weights = {name: value for name, value in model.named_parameters() if value.dim() > 1}
    found = [name for name in weights if re.search(names, name)]
    if not found:
        raise UnsupportedModelError(f'No weights to round: {names!r} is in none of {", ".join(weights)}.')
    with torch.no_grad():
        for name in found:
            value = weights[name]
            step = value.abs().amax(tuple(range(1, value.dim())), keepdim=True).clamp(min=1e-30) / 127
            value.copy_((value / step).round() * step)
    return found
