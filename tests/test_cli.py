"""The console command, and what every command line has in common."""

import importlib
import subprocess
import sys

import pytest
from conftest import ROOT

import rkan_mm
from rkan_mm.apis.command_line import add_cfg_options, command_line
from rkan_mm.cli import COMMANDS, main

TOOLS = sorted(path for path in (ROOT / 'tools').glob('*.py') if path.stem not in ('setup_env', 'compile_mmcv'))


def test_usage(capsys):
    for argv in ([], ['--help']):
        main(argv)
        text = capsys.readouterr().out
        assert all(f'  {name} ' in text for name in COMMANDS)
        assert len(text.splitlines()) <= 24
    main(['--version'])
    assert capsys.readouterr().out.strip() == rkan_mm.__version__


@pytest.mark.parametrize(('argv', 'message'), [
    (['trian'], "rkan-mm: no command 'trian'; did you mean 'train'?"),
    (['xyz'], "rkan-mm: no command 'xyz'; there are demo, train, test"),
])
def test_unknown_command(argv, message):
    with pytest.raises(SystemExit) as error:
        main(argv)
    assert str(error.value).startswith(message)


def test_a_config_by_a_name_that_is_nearly_right(capsys):
    with pytest.raises(SystemExit) as error:
        main(['train', 'mask-rcnn_rkanet50_fpn_1x_coc'])
    assert error.value.code == 2
    assert 'did you mean mask-rcnn_rkanet50_fpn_1x_coco or' in capsys.readouterr().err


@pytest.mark.parametrize('name', COMMANDS)
def test_help_of_every_command_has_an_example(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['rkan-mm'])
    with pytest.raises(SystemExit) as end:
        main([name, '--help'])
    assert not end.value.code
    text = capsys.readouterr().out
    assert f'\nexample: rkan-mm {name} ' in text
    assert len(text.splitlines()) <= 40


def test_a_command_can_be_given_again(monkeypatch):
    """As the page of `rkan-mm inspect` says how it was made."""
    given = []
    monkeypatch.setattr(sys, 'argv', ['/bin/rkan-mm', 'make-shapes', 'folder', '--train', '3'])
    monkeypatch.setattr('rkan_mm.apis.make_data.shapes', lambda argv: given.append([*sys.argv, argv]))
    main()
    assert given == [['rkan-mm make-shapes', 'folder', '--train', '3', ['folder', '--train', '3']]]


def test_every_tool_is_a_command():
    functions = {target.partition(':')[::2] for target, _ in COMMANDS.values()}
    for module, function in functions:
        assert callable(getattr(importlib.import_module(module), function))
    modules = {module.rpartition('.')[2] for module, _ in functions}
    for tool in TOOLS:
        assert any(module in tool.read_text() for module in modules), tool.stem


def test_as_a_module_and_as_a_script():
    for command in ([sys.executable, '-m', 'rkan_mm', 'make-shapes', '--help'],
                    [sys.executable, str(ROOT / 'tools/make_shapes.py'), '--help']):
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert 'example: ' in done.stdout


@pytest.mark.parametrize(('text', 'value'), [
    ('/data/my runs/epoch_1.pth', '/data/my runs/epoch_1.pth'), ('"my  runs"', 'my  runs'),
    ('[/my data/a, /b]', ['/my data/a', '/b']), ("['traffic light', \"bus\"]", ['traffic light', 'bus']),
    ('(a b, [1, c d])', ('a b', [1, 'c d'])), ('[ 1 , 2 ]', [1, 2]), ('1, 2', [1, 2]), (' 3', 3), ('None', None),
    ('[(1, 2), (3, 4)]', [(1, 2), (3, 4)]), ('Größe ÄB', 'Größe ÄB'),
])
def test_options_with_spaces(text, value):
    parser = command_line('', '')
    add_cfg_options(parser)
    assert parser.parse_args(['--cfg-options', f'a.b={text}']).cfg_options == {'a.b': value}
