#!/usr/bin/env python3
"""Make a virtual environment with torch, the mm stack (mmcv compiled with its ops) and rkan_mm.

Usage: python3 tools/setup_env.py [--stack onedl|openmmlab] [--venv .venv] [--torch 'torch==2.12.1 torchvision==0.27.1']

Only the standard library is used. A second call does nothing while the environment still fits. The compiled mmcv wheel
is kept in $XDG_CACHE_HOME/rkan_mm (default ~/.cache/rkan_mm), one for each mmcv, torch and Python version.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The mm packages of a stack are the extra of the same name in pyproject.toml; mmcv stands here too, to be built first.
STACKS = {
    'onedl': dict(mmcv='onedl-mmcv==2.3.6', torch='torch torchvision'),
    'openmmlab': dict(mmcv='mmcv==2.1.0', torch='torch==2.12.1 torchvision==0.27.1'),
}
CHECK = """
import mmcv, mmdet, mmengine, mmpretrain, torch, torchvision
from mmcv.ops import nms
nms(torch.tensor([[0., 0., 4., 4.], [0., 0., 4., 3.]]), torch.tensor([.9, .8]), 0.5)
import rkan_mm
print(f'torch {torch.__version__}, torchvision {torchvision.__version__}, mmengine {mmengine.__version__}, '
      f'mmcv {mmcv.__version__}, mmdet {mmdet.__version__}, mmpretrain {mmpretrain.__version__}')
"""


COMMANDS = 'mmcv-commands.jsonl'  # how each file of mmcv was compiled, written by tools/compile_mmcv.py


def optimisation(args: list[str]) -> str:
    """The level that a compiler takes: the last one it is given."""
    return next((arg for arg in reversed(args) if arg.startswith('-O')), '-O0')


class SetupError(Exception):
    """A step failed; the message says which, and what to do."""


class Setup:
    """The steps of one set-up; every command's output goes to ``<venv>/setup.log``."""

    def __init__(self, stack: str, venv: Path, torch: str | None) -> None:
        self.stack, self.venv = stack, venv
        self.mmcv = STACKS[stack]['mmcv']
        self.torch = (torch or STACKS[stack]['torch']).split()
        self.python = venv / 'bin' / 'python'
        self.log = venv / 'setup.log'
        self.stamp = venv / 'rkan_mm-setup.json'

    # -- running commands ------------------------------------------------------------------------------------------
    def call(self, title: str, usual: str, advice: str, *args: str, **kwargs) -> str:
        """Run one command under a heading; on failure show the end of its output and the advice."""
        print(f'==> {title} (usually {usual})', flush=True)
        start, lines = time.monotonic(), []
        with self.log.open('a') as log:
            log.write(f'\n$ {" ".join(args)}\n')
            shown = start
            with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace',
                                  cwd=ROOT, **kwargs) as process:
                for line in process.stdout:
                    log.write(line)
                    lines.append(line)
                    step = re.match(r'\s*\[(\d+)/(\d+)\]', line)
                    if step and time.monotonic() - shown > 30:
                        shown = time.monotonic()
                        print(f'    {step[1]} of {step[2]} files compiled, {shown - start:.0f} s', flush=True)
        if process.returncode:
            tail = ''.join(lines[-25:])
            raise SetupError(f'{tail}\nSet-up failed at: {title}\nCommand: {" ".join(args)}\n'
                             f'Full output: {self.log}\nWhat to do: {advice}')
        print(f'    done in {time.monotonic() - start:.0f} s', flush=True)
        return ''.join(lines)

    def pip(self, title: str, usual: str, *args: str, advice: str = '', **kwargs) -> str:
        advice = advice or 'check the network and the disk (about 8 GiB are needed), then run the same command again.'
        return self.call(title, usual, advice, str(self.python), '-m', 'pip', '--disable-pip-version-check', *args,
                         **kwargs)

    def ask(self, code: str) -> str:
        """Print of a snippet in the new environment."""
        return subprocess.run([self.python, '-c', code], check=True, capture_output=True, text=True).stdout.strip()

    # -- steps -----------------------------------------------------------------------------------------------------
    def fingerprint(self) -> dict:
        project = (ROOT / 'pyproject.toml').read_text().partition('[tool.')[0]  # its dependencies
        return dict(stack=self.stack, mmcv=self.mmcv, torch=self.torch, root=str(ROOT), python=sys.version,
                    project=hashlib.sha256(project.encode()).hexdigest())

    def is_current(self) -> bool:
        try:
            return json.loads(self.stamp.read_text()) == self.fingerprint() and self.python.exists()
        except (OSError, ValueError):
            return False

    def check_machine(self) -> None:
        """Everything that can be known to fail is said before the first download."""
        version = f'{sys.version_info.major}.{sys.version_info.minor}'
        if sys.version_info < (3, 10):  # noqa: UP036 - so that an older one is told
            raise SetupError(f'Python >= 3.10 is needed, this is {version} ({sys.executable}).\n'
                             'What to do: run it with a newer one, e.g. make demo PYTHON=python3.11')
        missing = []
        try:
            import ensurepip  # noqa: F401
            import venv  # noqa: F401
        except ImportError:
            missing.append(f'python{version}-venv')
        if not (Path(sysconfig.get_paths()['include']) / 'Python.h').exists():
            missing.append(f'python{version}-dev')
        if not any(shutil.which(c) for c in (os.environ.get('CXX', 'c++'), 'g++')):
            missing.append('g++')
        if missing:
            raise SetupError(f'Missing on this machine: {", ".join(missing)} (needed to compile mmcv).\n'
                             f'What to do: sudo apt-get install -y {" ".join(missing)}')
        free = shutil.disk_usage(self.venv.parent).free / 2**30
        if free < 8:
            raise SetupError(f'{free:.1f} GiB are free in {self.venv.parent}; torch and the mm stack take about 8 GiB.')

    def make_venv(self) -> None:
        shutil.rmtree(self.venv, ignore_errors=True)
        self.venv.mkdir(parents=True)
        self.call('a fresh virtual environment', '10 s', 'see the message above.', sys.executable, '-m', 'venv',
                  str(self.venv))
        # setuptools < 80: mmcv's setup.py still imports pkg_resources
        self.pip('pip, setuptools, wheel, ninja', '20 s', 'install', '--upgrade', 'pip', 'setuptools<80', 'wheel',
                 'ninja')

    def install_torch(self) -> None:
        self.pip(' and '.join(self.torch), '2 to 10 min, up to 3 GB of downloads', 'install', *self.torch)

    def mmcv_wheel(self) -> Path:
        """The compiled wheel from the cache, or else built from its sdist against the installed torch."""
        torch_version, with_cuda = self.ask('import torch; print(torch.__version__, torch.cuda.is_available())').split()
        device = 'cuda' if with_cuda == 'True' or os.environ.get('FORCE_CUDA') == '1' else 'cpu'
        name = f'{self.mmcv.replace("==", "-")}-torch{torch_version}-cp{sys.version_info.major}{sys.version_info.minor}'
        cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'rkan_mm'
        folder = cache / f'{name}-{platform.machine()}-{device}'
        wheels = sorted(folder.glob('*.whl'))
        if wheels and (folder / COMMANDS).exists():  # one without a record of its flags is compiled again
            print(f'==> compiled {self.mmcv} found in {folder}', flush=True)
            shutil.copy(folder / COMMANDS, self.venv)
            return wheels[0]
        if device == 'cuda' and not (shutil.which('nvcc') or os.environ.get('CUDA_HOME')):
            raise SetupError('torch sees a GPU, but nvcc, which compiles the CUDA ops of mmcv, was not found.\n'
                             'What to do: install the CUDA toolkit of torch.version.cuda and set CUDA_HOME, or hide '
                             'the GPU: CUDA_VISIBLE_DEVICES= make demo')
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as tmp:
            self.pip(f'the source of {self.mmcv}', '20 s', 'download', '--no-deps', '--no-binary', ':all:',
                     '--no-build-isolation', '--dest', tmp, self.mmcv)
            with tarfile.open(next(Path(tmp).glob('*.tar.gz'))) as archive:
                archive.extractall(tmp, **({'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}))
            source = next(p.parent for p in Path(tmp).glob('*/setup.py'))
            major, minor = map(int, torch_version.split('.')[:2])
            if (major, minor) >= (2, 14):  # these headers need C++20; mmcv's setup.py asks for 17
                setup = source / 'setup.py'
                setup.write_text(setup.read_text().replace('-std=c++17', '-std=c++20'))
            memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
            jobs = max(1, min(len(os.sched_getaffinity(0)), int(memory / 2)))
            build = Path(tmp) / 'build'
            build.mkdir()
            compiler = ROOT / 'tools/compile_mmcv.py'
            env = dict(os.environ, MMCV_WITH_OPS='1', MAX_JOBS=os.environ.get('MAX_JOBS', str(jobs)),
                       RKAN_MM_CXX=os.environ.get('CXX', 'c++'), RKAN_MM_BUILD=str(build), CXX=str(compiler))
            env['PATH'] = f'{self.venv / "bin"}{os.pathsep}{env["PATH"]}'
            self.pip(f'{self.mmcv} compiled for torch {torch_version} ({device}), {jobs} jobs',
                     '4 min on two cores, once for each torch version', 'wheel', '-v', '--no-deps',
                     '--no-build-isolation', '--wheel-dir', tmp, str(source), env=env,
                     advice='the first "error:" in the log names the cause. Not enough memory: MAX_JOBS=1 make demo. '
                     'A torch that this mmcv does not know: make demo TORCH="torch==2.12.1 torchvision==0.27.1".')
            wheel = next(Path(tmp).glob('*.whl'))
            self.check_optimised(build / COMMANDS)
            folder.mkdir(exist_ok=True)
            shutil.copy(build / COMMANDS, folder / COMMANDS)
            shutil.copy(build / COMMANDS, self.venv)
            return Path(shutil.move(wheel, folder / wheel.name))

    def check_optimised(self, commands: Path) -> None:
        """Every file of mmcv was compiled with -O2 or -O3: CFLAGS in the environment silently replaces Python's own."""
        lines = [json.loads(line) for line in commands.read_text().splitlines()]
        slow = [line['file'] for line in lines if optimisation(line['args']) not in ('-O2', '-O3')]
        if slow or not lines:
            raise SetupError(f'{len(slow)} of {len(lines)} files of mmcv were compiled without -O2 or -O3, e.g. '
                             f'{", ".join(slow[:3])}.\nWhat to do: unset CFLAGS, or give -O3 in it, and run the same '
                             'command again.')
        shared = sum('-include' in line['args'] for line in lines)
        print(f'    {len(lines)} files, all with -O2 or -O3; {shared} by the precompiled header', flush=True)

    def install_packages(self, wheel: Path) -> None:
        # torch is named again so that no dependency may move it away from what mmcv was compiled for
        version = self.ask('import torch; print(torch.__version__.split("+")[0])')
        self.pip(f'rkan_mm with the {self.stack} stack', '1 min', 'install', f'torch=={version}', str(wheel), '-e',
                 f'.[{self.stack},inspect,dev]')
        if subprocess.run([self.python, '-c', 'import cv2'], capture_output=True).returncode:
            # opencv-python needs libGL, which servers lack; the headless build of the same version does not
            cv2_version = self.ask('from importlib.metadata import version; print(version("opencv-python"))')
            self.pip('opencv without a screen', '10 s', 'install', '--no-deps', '--force-reinstall',
                     f'opencv-python-headless=={cv2_version}')

    def run(self) -> None:
        if self.is_current():
            return
        start = time.monotonic()
        print(f'Setting up {self.venv.name} for the {self.stack} stack; details in {self.log}', flush=True)
        self.check_machine()
        self.make_venv()
        self.install_torch()
        self.install_packages(self.mmcv_wheel())
        found = self.call('a check that everything imports and the compiled ops run', '30 s',
                          f'remove {self.venv} and run the same command again; if it fails again, report the log.',
                          str(self.python), '-c', CHECK)
        print(f'    {found.strip().splitlines()[-1]}')
        self.stamp.write_text(json.dumps(self.fingerprint()))
        print(f'Set-up complete in {(time.monotonic() - start) / 60:.1f} min.', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--stack', choices=STACKS, default='onedl')
    parser.add_argument('--venv', type=Path, default=ROOT / '.venv')
    parser.add_argument('--torch', help='what pip installs as torch and torchvision')
    args = parser.parse_args()
    try:
        Setup(args.stack, args.venv.absolute(), args.torch).run()
    except SetupError as error:
        sys.exit(f'\n{error}')
    except KeyboardInterrupt:
        sys.exit('\nSet-up was stopped; the same command starts it again.')


if __name__ == '__main__':
    main()
