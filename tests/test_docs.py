"""Pages keep what they promise: backbones are built, commands parse, links lead somewhere."""

import functools
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from rkan_mm.cli import COMMANDS
from rkan_mm.models import RKANBlock, RKANet

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
    size = (224, 224) if 'Swin' in cfg['type'] else (64, 64)
    model = RKANet(backbone=cfg, stages=eval(stages, {'__builtins__': {}}), input_size=size)
    (bridge,) = model.bridges.values()
    assert isinstance(bridge.block, RKANBlock)


PAGES = [*ROOT.glob('*.md'), *ROOT.glob('docs/*.md'), *ROOT.glob('configs/**/README.md')]
each_page = pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
COMMAND = re.compile(r'(?:python|torchrun|mpirun)\b.*?\btools/(\w+)\.py(.*)|rkan-mm ([\w-]+)(.*)')


def commands(page):
    """Lines of the bash blocks of a page, continued lines joined, and what stands in `backquotes` as a command."""
    text = page.read_text()
    for block in re.findall(r'```bash\n(.*?)```', text, re.DOTALL):
        yield from block.replace('\\\n', ' ').splitlines()
    yield from re.findall(r'`((?:python|make|pytest|torchrun|rkan-mm) [^`]+)`', text)


@functools.cache
def options(tool):
    """Options of a tool by its own help."""
    done = subprocess.run([sys.executable, str(ROOT / f'tools/{tool}.py'), '--help'], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 0, done.stderr
    return set(re.findall(r'(?<![\w-])--?[a-z][\w-]*', done.stdout))


@each_page
def test_commands_name_what_exists(page):
    for line in commands(page):
        line = line.partition('  #')[0]
        for name in re.findall(r'(?<![\w/$.])((?:configs|tools|tests|docs)/[\w./-]+\.(?:py|yml|sh))', line):
            assert (ROOT / name).exists() or re.search(r'/[A-Z]+\.py$', name), f'{line}: no {name}'
        for target in re.findall(r'^make ([\w-]+)', line):
            assert re.search(rf'^{target}:', (ROOT / 'Makefile').read_text(), re.MULTILINE), line
        if match := COMMAND.search(line):
            tool, arguments, command, more = match.groups()
            if command:
                if command.startswith('-') or command.isupper():
                    continue
                assert command in COMMANDS, line
                module = COMMANDS[command][0].partition(':')[0]
                tool = next(path.stem for path in (ROOT / 'tools').glob('*.py') if re.search(
                    rf'\b{module.rpartition(".")[2]}\b', path.read_text()) and (
                        module != 'rkan_mm.apis.runner' or path.stem == command))
            own = (arguments or more).partition('--cfg-options')[0]
            for option in re.findall(r'(?<!\S)(--[a-z][\w-]*)', own):
                assert option in options(tool), f'{line}: tools/{tool}.py has no {option}'


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
