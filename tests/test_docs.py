"""Pages keep what they promise: backbones are built, commands parse, links lead somewhere."""

import functools
import pkgutil
import re
import runpy
import shlex
import sys
from argparse import ArgumentParser
from unittest.mock import patch

import pytest
from conftest import ROOT
from mmengine.registry import METRICS, MODELS

from rkan_mm.apis.configs import find_config
from rkan_mm.cli import COMMANDS, main
from rkan_mm.models import RKANBlock, RKANet
from rkan_mm.preflight.config import SWITCHES

TOOLS = [path.stem for path in (ROOT / 'tools').glob('*.py') if path.stem not in ('compile_mmcv', 'offline_ops')]
HRNET_W18 = dict(
    stage1=dict(num_modules=1, num_branches=1, block='BOTTLENECK', num_blocks=(4,), num_channels=(64,)),
    stage2=dict(num_modules=1, num_branches=2, block='BASIC', num_blocks=(4, 4), num_channels=(18, 36)),
    stage3=dict(num_modules=4, num_branches=3, block='BASIC', num_blocks=(4,) * 3, num_channels=(18, 36, 72)),
    stage4=dict(num_modules=3, num_branches=4, block='BASIC', num_blocks=(4,) * 4, num_channels=(18, 36, 72, 144)))
BACKBONES = re.findall(r'^\| `(dict\(type=.*?\))`.*?\| `(\(.*?\))` \|$',
                       (ROOT / 'docs/your-backbone.md').read_text(), re.MULTILINE)


def test_the_page_has_the_families():
    assert len(BACKBONES) >= 15


@pytest.mark.parametrize(('backbone', 'stages'), BACKBONES)
def test_each_backbone_of_the_page_takes_a_block(backbone, stages, quick_build):
    names = dict(dict=dict, HRNET_W18=HRNET_W18)
    cfg = eval(backbone, {'__builtins__': {}}, names)
    model = RKANet(backbone=cfg, stages=eval(stages, {'__builtins__': {}}))
    (bridge,) = model.bridges.values()
    assert isinstance(bridge.block, RKANBlock)


PAGES = [*ROOT.glob('*.md'), *ROOT.glob('docs/*.md'), *ROOT.glob('configs/**/README.md')]
each_page = pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
CALL = re.compile(r'(?<![\w/$])(?:tools/(\w+\.(?:py|sh))|rkan-mm(?= [\w-]+(?: |$)))(.*)')
SCRIPTS = {  # of a shell script: the tool that it starts, which arguments are the tool's, and where the others begin
    'dist_train.sh': ('train', [0], 2), 'dist_test.sh': ('test', [0, 1], 3),
    'slurm_train.sh': ('train', [2], 4), 'slurm_test.sh': ('test', [2, 3], 4),
}
FILE = re.compile(r'(?<![\w/$.{])((?:configs|tools|tests|docs|rkan_mm)/[\w./-]+\.(?:py|yml|sh|json|csv))')
OTHERS = {'--no-build-isolation', '--no-deps'}  # pip's


def commands(page):
    """Lines of the bash blocks of a page, continued lines joined."""
    for block in re.findall(r'```bash\n(.*?)```', page.read_text(), re.DOTALL):
        for line in block.replace('\\\n', ' ').splitlines():
            yield from re.sub(r'\s+#.*', '', line).split(' && ')


def quoted(page):
    """What stands in `backquotes`."""
    return re.findall(r'`([^`\n]+)`', re.sub(r'```.*?```', '', page.read_text(), flags=re.DOTALL))


class Parser(Exception):
    """The parser that a tool has made."""


@functools.cache
def parser(tool):
    """Parser of `tools/<tool>.py` or `rkan-mm <tool>`, which begin as ever and are stopped where they would read."""
    def stop(self, *args, **kwargs):
        raise Parser(self)

    with patch.object(ArgumentParser, 'parse_args', stop), patch.object(ArgumentParser, 'parse_known_args', stop), \
            patch.object(sys, 'argv', [tool]):
        try:
            if tool in COMMANDS:
                main([tool])
            runpy.run_path(str(ROOT / f'tools/{tool}.py'), run_name='__main__')
        except Parser as made:
            return made.args[0]
    raise AssertionError(f'{tool} reads no command line')


def call(line):
    """The tool of ours that a line calls and its arguments, or None."""
    match = CALL.search(line)
    script = match and match[1]
    if not match or (script and script.endswith('.sh') and script not in SCRIPTS):
        return None
    args = shlex.split(match[2])
    if script in SCRIPTS:
        tool, own, rest = SCRIPTS[script]
        return tool, [*(args[i] for i in own), *args[rest:]]
    return (script.removesuffix('.py'), args) if script else (args[0], args[1:])


@each_page
def test_commands_are_read_by_their_tools(page, capsys):
    for line in commands(page):
        if called := call(line):
            tool, args = called
            try:
                parser(tool).parse_args(args)
            except SystemExit:
                pytest.fail(f'{line}: {capsys.readouterr().err}')
    for text in quoted(page):
        called = call(text)
        tools = [called[0]] if called else TOOLS
        for option in () if '$MM' in text else set(re.findall(r'(?<!\S)--[a-z][\w-]*', text)) - OTHERS:
            assert any(option in parser(tool)._option_string_actions for tool in tools), f'`{text}`: no {option}'
        if text.startswith('rkan-mm') and called and any(each.dest == 'config' for each in parser(called[0])._actions):
            for name in called[1][:1]:
                find_config(name)
    for name in re.findall(r'rkan_mm::([\w./-]+)', page.read_text()):
        find_config(name)


@each_page
def test_files_and_names_exist(page):
    for line in (*commands(page), *quoted(page)):
        for name in FILE.findall(line):
            assert (ROOT / name).exists() or re.search(r'/[A-Z]+\.py$', name), f'{line}: no {name}'
        for target in re.findall(r'^make ([\w-]+)', line):
            assert re.search(rf'^{target}:', (ROOT / 'Makefile').read_text(), re.MULTILINE), line
        if page.name == 'CHANGELOG.md':  # which has old names
            continue
        for name in re.findall(r'^(rkan_mm(?:\.\w+)+)', line):
            try:
                pkgutil.resolve_name(name)
            except (AttributeError, ImportError):
                assert any(registry.get(name) for registry in (MODELS, METRICS)), name


def test_every_check_before_a_run_is_on_its_page():
    text = (ROOT / 'docs/checks.md').read_text()
    assert all(f'`preflight.{name}={not on}`' in text for name, on in SWITCHES.items())


def test_pages_that_the_code_names_exist():
    for path in (path for folder in ('rkan_mm', 'tools', 'configs', 'tests') for path in (ROOT / folder).rglob('*.py')):
        for name in re.findall(r'docs/[\w-]+\.md', path.read_text()):
            assert (ROOT / name).exists(), f'{path}: no {name}'


@each_page
def test_python_of_a_page_compiles(page):
    for block in re.findall(r'```python\n(.*?)```', page.read_text(), re.DOTALL):
        compile(block, str(page), 'exec')


def slugs(page):
    heads = re.findall(r'^#+ (.*)$', page.read_text(), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', head.lower()).replace(' ', '-') for head in heads}


@each_page
def test_links_lead_somewhere(page):
    text = re.sub(r'```.*?```', '', page.read_text(), flags=re.DOTALL)
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if target.startswith(('http', 'mailto')):
            continue
        name, _, anchor = target.partition('#')
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f'{page.name} links {target}'
        if anchor:
            assert anchor in slugs(path), f'{page.name} links {target}; there are {slugs(path)}'


def test_the_readme_is_short_and_links_every_page():
    text = (ROOT / 'README.md').read_text()
    assert len(text.splitlines()) <= 120
    for page in (ROOT / 'docs').glob('*.md'):
        assert f'docs/{page.name}' in text, page.name
