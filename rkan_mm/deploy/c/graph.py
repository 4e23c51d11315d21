"""The graph of a net, read operation by operation into a program."""

from __future__ import annotations

import operator
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from rkan_mm.deploy.errors import UnsupportedModelError

from .program import Program
from .table import OPERATORS
from .values import Constant, Memory, Value

WHOLE = ('silu', 'stack')
"""What is not taken apart: there is a short form in C."""
APART = ('_softmax', '_log_softmax', 'addmm', 'gelu', 'elu', 'leaky_relu', 'hardtanh', 'hardswish', 'hardsigmoid',
         'softplus', 'mish', 'addcmul', 'lerp')


def traced(net: nn.Module, image: Tensor) -> torch.export.ExportedProgram:
    """The net in PyTorch's core operations, at one size.

    Raises:
        UnsupportedModelError: it cannot be traced.
    """
    aten = torch.ops.aten
    table = torch.export.default_decompositions()
    table.update(torch._decomp.get_decompositions([getattr(aten, name) for name in APART if hasattr(aten, name)]))
    for overload in [each for each in table if _name(each) in WHOLE]:
        table.pop(overload)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            exported = torch.export.export(net, (image,)).run_decompositions(table)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UnsupportedModelError(f'{type(net).__name__} cannot be written in C: {reason}') from error
    for node in reversed(exported.graph.nodes):
        if node.op == 'call_function' and not node.users:  # assertions, which count as readers
            exported.graph.erase_node(node)
    return exported


class Reader:
    """Reads a graph.

    Args:
        exported: as `traced` gives it.
        program: what is written.
    """

    def __init__(self, exported: torch.export.ExportedProgram, program: Program) -> None:
        self.program, self.exported = program, exported
        self.values: dict[Node, Any] = {}

    def read(self) -> tuple[Memory, Memory]:
        """The image and the result, in memory."""
        signature, numbers = self.exported.graph_signature, dict(self.exported.state_dict)
        numbers.update(self.exported.constants)
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers,
                 **signature.inputs_to_lifted_tensor_constants}
        for node in self.exported.graph.nodes:
            if node.op == 'placeholder' and node.name in names:
                self.values[node] = self.program.constant(numbers[names[node.name]])
            elif node.op == 'placeholder':
                image = self.values[node] = Memory(node.meta['val'].shape, 'image')
            elif node.op == 'output':
                result, *others = node.args[0]
                if others:
                    raise UnsupportedModelError(f'A net with {1 + len(others)} results cannot be written in C: one is '
                                                'known.')
                memory = self.program.stored(self.values[result])
                return image, memory if memory is not image else self.program.stored(
                    memory.mapped(memory.shape, lambda index: index))
            else:
                self.program.origin = _origin(node)
                self.values[node] = self._node(node)
        raise AssertionError('a graph ends with its output')

    def _node(self, node: Node) -> Any:
        args, kwargs = (torch.fx.node.map_arg(part, self.values.__getitem__) for part in (node.args, node.kwargs))
        if node.target is operator.getitem:
            return args[0][args[1]]
        name, seen = _name(node.target), node.meta['val']
        if name in ('full_like', 'zeros_like', 'ones_like'):
            fill = dict(zeros_like=0.0, ones_like=1.0).get(name, args[1] if len(args) > 1 else 0.0)
            return self.program.constant(torch.full(seen.shape, fill, dtype=seen.dtype))
        inputs = [value for value in _flat([args, list(kwargs.values())]) if isinstance(value, Value)]
        if all(isinstance(value, Constant) for value in inputs):
            return self._known(node)
        shape = [each.shape for each in seen if each is not None] if isinstance(seen, list | tuple) else seen.shape
        if name not in OPERATORS:
            raise UnsupportedModelError(f'The net computes {name}, which cannot be written in C.')
        value = OPERATORS[name](self.program, args, kwargs, shape)
        costly = isinstance(value, Value) and value.cost > 0 and len(node.users) > 1
        return self.program.stored(value) if costly else value

    def _known(self, node: Node) -> Any:
        """Computed here."""
        args, kwargs = (torch.fx.node.map_arg(part, lambda n: self.values[n].tensor)
                        for part in (node.args, node.kwargs))
        with torch.no_grad():
            result = node.target(*args, **kwargs)
        if isinstance(result, list | tuple):
            return [self.program.constant(each) if isinstance(each, Tensor) else each for each in result]
        return self.program.constant(result)


def _name(target: Any) -> str:
    return getattr(getattr(target, 'overloadpacket', target), '__name__', str(target))


def _flat(values: Any) -> list[Any]:
    if isinstance(values, list | tuple):
        return [each for value in values for each in _flat(value)]
    return [values]


def _origin(node: Node) -> str:
    """The innermost module that an operation is of."""
    stack = node.meta.get('nn_module_stack') or {}
    path, kind = [*stack.values()][-1] if stack else ('', '')
    kind = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return f'{path} {kind.rpartition(".")[2]}'.strip()
