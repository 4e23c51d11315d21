#!/usr/bin/env python3
"""The C++ compiler as tools/setup_env.py lets mmcv's build call it: no debug information, torch's headers parsed once.

mmcv's files all include the same headers of torch. The first call compiles these into a precompiled header with the
very flags of the files; the others wait for it and use it. A compiler that refuses the header compiles as ever, and
the log says so. The host files of a CUDA build pass through here too; nvcc calls its own compiler.

Environment: RKAN_MM_CXX, the compiler; RKAN_MM_BUILD, a folder for the header and mmcv-commands.jsonl, a line a file.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

HEADER = 'pytorch_cpp_helper.hpp'
# what stands for one file alone: an option with a value, and one without
OWN, OWN_SINGLE = ('-o', '-MF', '-MT', '-MQ', '-c'), ('-MMD', '-MD', '-MP', '-M', '-MM')


def shared_flags(args: list[str]) -> list[str]:
    """The flags that every file has in common: without source, output and dependency file."""
    flags, skip = [], False
    for arg in args:
        if skip:
            skip = False
        elif arg in OWN:
            skip = True
        elif arg not in OWN_SINGLE and not arg.endswith('.cpp'):
            flags.append(arg)
    return flags


def has_header(args: list[str]) -> bool:
    """Whether the include path has mmcv's header."""
    folders = [a[2:] if a != '-I' else following for a, following in zip(args, [*args[1:], ''], strict=True)
               if a.startswith('-I')]
    return any(Path(folder, HEADER).exists() for folder in folders)


def precompile(cxx: list[str], flags: list[str], build: Path) -> Path | None:
    """Compile the header unless a call before this one has; None where the compiler refused it."""
    stub, refused = build / HEADER, build / 'refused'
    compiled = build / f'{HEADER}.gch'  # clang looks for this name, too
    with (build / 'lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not compiled.exists() and not refused.exists():
            stub.write_text(f'#include <{HEADER}>\n')
            partial = build / 'partial.gch'
            done = subprocess.run([*cxx, *flags, '-x', 'c++-header', str(stub), '-o', str(partial)],
                                  capture_output=True, text=True)
            if done.returncode:
                refused.write_text(done.stderr)
                print(f'precompiled header refused, each file parses all headers:\n{done.stderr[-2000:]}', flush=True)
            else:
                partial.rename(compiled)
    return None if refused.exists() else stub


def main(args: list[str]) -> int:
    """Run the compiler; its exit status."""
    cxx, build = shlex.split(os.environ['RKAN_MM_CXX']), Path(os.environ['RKAN_MM_BUILD'])
    source = next((arg for arg in args if arg.endswith('.cpp')), None)
    if '-c' in args and source:
        args = [*args, '-g0']
        header = precompile(cxx, shared_flags(args), build) if has_header(args) else None
        if header:
            args = ['-include', str(header), *args]
        with (build / 'mmcv-commands.jsonl').open('a') as log:
            log.write(json.dumps(dict(file=Path(source).name, args=[*cxx, *args])) + '\n')
    return subprocess.run([*cxx, *args]).returncode


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
