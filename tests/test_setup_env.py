"""The set-up script, without setting anything up."""

import importlib.util
import subprocess
import sys

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
    setup.stamp.write_text(setup_env.json.dumps(setup.fingerprint()))
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
    monkeypatch.setattr(setup, 'ask', lambda code: '2.14.1 False')
    assert setup.mmcv_wheel() == folder / 'onedl_mmcv-2.3.6.whl'
    monkeypatch.setattr(setup, 'ask', lambda code: '2.13.0 False')
    with pytest.raises(pytest.fail.Exception, match=r'the source of onedl-mmcv==2.3.6'):
        setup.mmcv_wheel()


def test_help():
    done = subprocess.run([sys.executable, ROOT / 'tools/setup_env.py', '--help'], capture_output=True, text=True)
    assert '--stack' in done.stdout
