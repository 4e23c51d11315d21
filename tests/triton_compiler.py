"""Compile Triton kernels for GPUs that are not there, and read the compiler's report."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

TARGETS = (80, 90, 100)
"""Compute capabilities: A100, H100, B200."""


class Report(NamedTuple):
    """Of one kernel on one GPU."""

    ptx: str
    registers: int
    """of a thread"""
    spills: int
    """bytes of a thread that did not find room in registers"""
    shared: int
    """bytes of a block"""


def compiled(kernel: Any, types: dict[str, str], constants: dict[str, Any], capability: int, **options) -> Report:
    """Compile ``kernel``; its arguments are of ``types`` (``'*fp16'``), constants, or else ``'i32'``."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: 'constexpr' if name in constants else types.get(name, 'i32') for name in kernel.arg_names}
    used = {name: value for name, value in constants.items() if name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=used)
    done = triton.compile(source, target=GPUTarget('cuda', capability, 32), options=options)
    spills, registers = _resources(done.asm['ptx'])
    return Report(done.asm['ptx'], registers, spills, done.metadata.shared)


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
