"""The set-up script, without setting anything up."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

spec = importlib.util.spec_from_file_location('setup_env', ROOT / 'tools/setup_env.py')
setup_env = importlib.util.module_from_spec(spec)
spec.loader.exec_module(setup_env)


@pytest.fixture
def setup(tmp_path):
    (tmp_path / 'venv').mkdir()
    return setup_env.Setup('onedl', tmp_path / 'venv', None)


@pytest.mark.parametrize('stack', setup_env.STACKS)
def test_mmcv_is_that_of_the_extra(stack):
    text = (ROOT / 'pyproject.toml').read_text()
    extra = text[text.index(f'\n{stack} = ['):]
    assert f'"{setup_env.STACKS[stack]["mmcv"]}"' in extra[:extra.index(']')]


def test_a_failed_step_says_what_failed_and_what_to_do(setup, capsys):
    with pytest.raises(setup_env.SetupError) as error:
        setup.call('a step', '1 s', 'turn it off and on again.', sys.executable, '-c',
                   "print('the cause'); raise SystemExit(3)")
    for part in ('the cause', 'Set-up failed at: a step', 'What to do: turn it off and on again.', 'setup.log'):
        assert part in str(error.value)
    assert 'the cause' in setup.log.read_text()
    assert '==> a step (usually 1 s)' in capsys.readouterr().out


def test_compilation_shows_its_progress(setup, capsys, monkeypatch):
    clock = iter(range(0, 10**6, 40))
    monkeypatch.setattr(setup_env.time, 'monotonic', lambda: next(clock))
    setup.call('mmcv', '1 s', '', sys.executable, '-c', "print('[3/78] c++ nms.cpp')")
    assert '3 of 78 files compiled' in capsys.readouterr().out


@pytest.mark.parametrize('missing', ['python3', 'g++'])
def test_a_machine_without_headers_or_compiler(setup, monkeypatch, missing, tmp_path):
    if missing == 'g++':
        monkeypatch.setattr(setup_env.shutil, 'which', lambda name: None)
    else:
        monkeypatch.setattr(setup_env.sysconfig, 'get_paths', lambda: dict(include=str(tmp_path)))
    with pytest.raises(setup_env.SetupError, match=rf'sudo apt-get install -y .*{missing.replace("+", ".")}'):
        setup.check_machine()


def test_a_full_disk(setup, monkeypatch):
    monkeypatch.setattr(setup_env.shutil, 'disk_usage', lambda path: type('', (), dict(free=2**30)))
    with pytest.raises(setup_env.SetupError, match=r'1.0 GiB are free in .* about 8 GiB'):
        setup.check_machine()


def test_nothing_is_done_twice(setup):
    assert not setup.is_current()
    setup.stamp.write_text(json.dumps(setup.fingerprint()))
    assert not setup.is_current()  # no interpreter yet
    setup.python.parent.mkdir(parents=True)
    setup.python.touch()
    assert setup.is_current()
    setup.torch = ['torch==2.1.0']
    assert not setup.is_current()


def test_a_wheel_is_compiled_once_for_each_torch(setup, monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(setup, 'pip', lambda title, *args, **kwargs: pytest.fail(title))
    python = f'cp{sys.version_info.major}{sys.version_info.minor}-{setup_env.platform.machine()}'
    folder = tmp_path / f'cache/rkan_mm/onedl-mmcv-2.3.6-torch2.14.1-{python}-cpu'
    folder.mkdir(parents=True)
    (folder / 'onedl_mmcv-2.3.6.whl').touch()
    (folder / setup_env.COMMANDS).touch()
    monkeypatch.setattr(setup, 'ask', lambda code: '2.14.1 False')
    assert setup.mmcv_wheel() == folder / 'onedl_mmcv-2.3.6.whl'
    monkeypatch.setattr(setup, 'ask', lambda code: '2.13.0 False')
    with pytest.raises(pytest.fail.Exception, match=r'the source of onedl-mmcv==2.3.6'):
        setup.mmcv_wheel()


def test_help():
    done = subprocess.run([sys.executable, ROOT / 'tools/setup_env.py', '--help'], capture_output=True, text=True)
    assert '--stack' in done.stdout


def test_each_file_of_mmcv_was_compiled_with_optimisation():
    """``CFLAGS`` in the environment silently replaces Python's own -O3."""
    record = Path(sys.prefix) / setup_env.COMMANDS
    if not record.exists():
        pytest.skip(f'mmcv was not compiled by tools/setup_env.py: there is no {record}')
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert len(lines) >= 70
    for line in lines:
        assert setup_env.optimisation(line['args']) in ('-O2', '-O3'), line['file']
        assert [arg for arg in line['args'] if arg.startswith('-g') and not arg.startswith('-gno')][-1] == '-g0'


def test_files_without_optimisation_are_refused(setup, tmp_path, capsys):
    record = tmp_path / setup_env.COMMANDS
    good, bad = (dict(file=f'{level}.cpp', args=['c++', '-O3', *levels]) for level, levels in (
        ('good', []), ('bad', ['-O0'])))
    record.write_text(json.dumps(good) + '\n')
    setup.check_optimised(record)
    assert '1 files, all with -O2 or -O3' in capsys.readouterr().out
    record.write_text('\n'.join(map(json.dumps, (good, bad))))
    with pytest.raises(setup_env.SetupError, match=r'1 of 2 files of mmcv were compiled without -O2 or -O3, e.g. bad'):
        setup.check_optimised(record)


COMPILER = ROOT / 'tools/compile_mmcv.py'


@pytest.fixture(params=['g++', 'clang++'])
def project(request, tmp_path, monkeypatch):
    """A header as mmcv's, two files, and a compiler by way of tools/compile_mmcv.py."""
    if shutil.which(request.param) is None:
        pytest.skip(f'{request.param} is not installed')
    for folder in ('include', 'build'):
        (tmp_path / folder).mkdir()
    (tmp_path / 'include/pytorch_cpp_helper.hpp').write_text('#pragma once\ninline int one() { return ONE; }\n')
    for name in ('a', 'b'):
        (tmp_path / f'{name}.cpp').write_text('#include "pytorch_cpp_helper.hpp"\nint f() { return one(); }\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('RKAN_MM_CXX', request.param)
    monkeypatch.setenv('RKAN_MM_BUILD', str(tmp_path / 'build'))

    def compile(name, *flags):
        return subprocess.run([COMPILER, '-MMD', '-MF', f'{name}.o.d', '-Iinclude', '-DONE=1', '-O3', '-g', *flags,
                               '-c', f'{name}.cpp', '-o', f'{name}.o'], capture_output=True, text=True)
    return compile


def test_the_header_is_compiled_once_with_the_flags_of_the_files(project, tmp_path):
    build = tmp_path / 'build'
    assert project('a').returncode == 0
    header = build / 'pytorch_cpp_helper.hpp.gch'
    time = header.stat().st_mtime_ns
    assert project('b', '-Winvalid-pch', '-Werror').returncode == 0  # -Winvalid-pch: the header was not usable
    assert header.stat().st_mtime_ns == time
    assert (tmp_path / 'b.o').exists()
    first, second = map(json.loads, (build / setup_env.COMMANDS).read_text().splitlines())
    assert (first['file'], second['file']) == ('a.cpp', 'b.cpp')
    for line in (first, second):
        assert line['args'][1:3] == ['-include', str(build / 'pytorch_cpp_helper.hpp')]
        assert line['args'][-1] == '-g0'


def test_a_compiler_that_refuses_the_header_compiles_as_ever(project, tmp_path):
    compiler = tmp_path / 'compiler'
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *c++-header*) echo no headers >&2; exit 1;; esac\n'
                        f'exec {os.environ["RKAN_MM_CXX"]} "$@"\n')
    compiler.chmod(0o755)
    os.environ['RKAN_MM_CXX'] = str(compiler)  # put back by the fixture's monkeypatch
    done = project('a')
    assert done.returncode == 0
    assert 'precompiled header refused, each file parses all headers:\nno headers' in done.stdout
    assert 'refused' not in project('b').stdout  # said once
    assert (tmp_path / 'b.o').exists()


def test_an_error_in_a_file_is_the_compilers(project, tmp_path):
    (tmp_path / 'a.cpp').write_text('#include "pytorch_cpp_helper.hpp"\nint f() { return two(); }\n')
    done = project('a')
    assert done.returncode
    assert 'two' in done.stderr
