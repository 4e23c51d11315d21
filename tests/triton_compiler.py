"""Compile Triton kernels for GPUs that are not there, and read the compiler's report."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from rkan_mm.models.ops.triton_launch import Launch

TARGETS = (80, 90, 100)
"""Compute capabilities: A100, H100, B200."""
TYPES = {torch.float32: '*fp32', torch.float16: '*fp16', torch.bfloat16: '*bf16', torch.float64: '*fp64'}
OPTIONS = 'num_warps', 'num_stages', 'maxnreg'


class Report(NamedTuple):
    """Of one kernel on one GPU."""

    name: str
    ptx: str
    registers: int
    """of a thread"""
    spills: int
    """bytes of a thread that did not find room in registers"""
    shared: int
    """bytes of a block"""


@contextmanager
def compiled_launches(module: ModuleType, capability: int | None) -> Iterator[list[Report]]:
    """Kernels that ``module`` launches on meta tensors are compiled, as a launch would, and reported in the list.

    Without a capability it is only seen whether the arguments are those of the kernel: the interpreter takes more.
    """
    reports = []

    def launch(call: Launch, *tensors: torch.Tensor) -> None:
        kernel, args, constants = call.kernel, (*tensors, *call.numbers), dict(call.constants)
        given = [*kernel.arg_names[:len(args)], *(name for name in constants if name not in OPTIONS)]
        if sorted(given) != sorted(kernel.arg_names):
            raise TypeError(f'{kernel.fn.__name__}: {set(given) ^ set(kernel.arg_names)} too many or missing')
        reports.append(Report(kernel.fn.__name__, '', 0, 0, 0) if capability is None
                       else _compiled(kernel, args, constants, capability))

    with patch.object(module, 'launch', launch):
        yield reports


def _compiled(kernel: Any, args: tuple, constants: dict[str, Any], capability: int) -> Report:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {name: constants.pop(name) for name in OPTIONS if name in constants}
    signature, known, attrs = dict.fromkeys(kernel.arg_names, 'constexpr'), dict(constants), {}
    for i, (parameter, value) in enumerate(zip(kernel.params, args, strict=False)):
        special = not parameter.do_not_specialize
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
        elif value == 1 and special:
            known[parameter.name] = 1
            continue
        else:
            signature[parameter.name] = 'i32' if -2**31 <= value < 2**31 else 'i64'
        if isinstance(value, torch.Tensor) or (special and value % 16 == 0):
            attrs[i,] = [['tt.divisibility', 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=known, attrs=attrs)
    done = triton.compile(source, target=GPUTarget('cuda', capability, 32), options=options)
    spills, registers = _resources(done.asm['ptx'])
    return Report(kernel.fn.__name__, done.asm['ptx'], registers, spills, done.metadata.shared)


def _resources(ptx: str) -> tuple[int, int]:
    import triton
    arch = re.search(r'^\.target (\w+)', ptx, re.MULTILINE)[1]
    tool = 'ptxas-blackwell' if int(re.search(r'\d+', arch)[0]) >= 100 else 'ptxas'
    program = Path(triton.__file__).parent / 'backends/nvidia/bin' / tool
    result = subprocess.run([program, '-v', f'--gpu-name={arch}', '-o', '/dev/null', '/dev/stdin'], input=ptx,
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    spills = sum(int(n) for n in re.findall(r'(\d+) bytes spill', result.stderr))
    return spills, int(re.search(r'Used (\d+) registers', result.stderr)[1])
