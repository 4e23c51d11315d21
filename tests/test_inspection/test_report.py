"""The page: made by the command line, complete, self-contained; and what is said of bad input."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from rkan_mm.apis.inspect import SKIPPED, main
from rkan_mm.apis.runner import load_config
from rkan_mm.datasets.shapes import make_shapes
from rkan_mm.inspection.report import SECTIONS, Options, write
from rkan_mm.inspection.report.layers import most_important
from rkan_mm.inspection.report.page import Page
from rkan_mm.inspection.report.study import percent
from rkan_mm.models import KANLinear
from rkan_mm.preflight import PreflightError
from rkan_mm.spread import spread

pytest.importorskip('pytorch_grad_cam')
pytest.importorskip('sympy')

RKANET = '_base_ = {base!r}\nmodel = dict(head=dict(num_classes=20))\n'
KAN_NET = """_base_ = {base!r}
model = dict(_delete_=True, type='ImageClassifier', backbone=dict(
    type='ResNet', depth=18, stem_channels=8, base_channels=8,
    conv_cfg=dict(type='rkan_mm.KANConv2d', basis=dict(type='BSpline', grid_size=3))),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='rkan_mm.KANLinearClsHead', num_classes=20, in_channels=64, loss=dict(type='CrossEntropyLoss'),
              fc_cfg=dict(basis=dict(type='Chebyshev'))))
optim_wrapper = dict(optimizer=dict(lr=1e-3))
"""


class Checker(HTMLParser):
    """Tags that do not close, and addresses of anything outside of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.outside, self.headings = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in ('meta', 'img', 'br', 'link', 'mspace'):
            self.open.append(tag)
        self.outside += [value for name, value in attrs if name in ('src', 'href') and not value.startswith(
            ('data:', '#'))]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ('h2', 'h3'):
            self.headings.append(data)


@pytest.fixture
def classifier(tmp_path, root):
    """Makes a config, a checkpoint of random weights, and three pictures of each of two classes."""
    draw = np.random.default_rng(0)
    for split in ('train', 'val'):
        for name in ('a', 'b'):
            folder = tmp_path / 'data' / split / name
            folder.mkdir(parents=True)
            for i in range(3):
                cv2.imwrite(str(folder / f'{name}{i}.png'), draw.integers(0, 255, (64, 64, 3), dtype=np.uint8))

    def make(template: str) -> list[str]:
        config = tmp_path / 'net.py'
        config.write_text(template.format(base=str(root / 'configs/small/rkanet18-w16_1xb64-40e_tiny-imagenet-20.py')))
        cfg = load_config(str(config))
        init_default_scope('mmpretrain')
        torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), tmp_path / 'net.pth')
        return [str(config), str(tmp_path / 'net.pth'), '--out-dir', str(tmp_path / 'out'), '--cfg-options',
                f'data_root={tmp_path}/data/']
    return make


def read(page: Path) -> tuple[Checker, dict]:
    checker = Checker(page.read_text())
    assert not checker.open
    assert not checker.outside
    return checker, json.loads((page.parent / 'data.json').read_text())


def test_classifier_with_a_block(classifier, tmp_path, capsys):
    page = main([*classifier(RKANET), '--num-images', '4', '--boxes', '1', '--device', 'cpu', '--top', '5',
                 '--finetune-iters', '9'])
    assert page == tmp_path / 'out/index.html'
    checker, data = read(page)
    assert checker.headings[:4] == ['Does it matter?', 'Block layer4', 'layer4.kan1: its functions',
                                    'layer4.kan2: its functions']
    assert checker.headings[-2:] == ['Where it looks', 'Effective receptive field']
    assert [(run['part'], run['run']) for run in data['metric']['runs']] == [
        ('', 'as trained'), ('backbone.bridges.layer4', 'straight'), ('backbone.bridges.layer4', 'off')]
    assert data['metric']['images'] == 4
    assert all('accuracy/top1' in run['metrics'] for run in data['metric']['runs'])
    kernel = data['layers']['backbone.bridges.layer4.block.kan1']
    assert len(kernel['each']) == 9
    for one in kernel['each'].values():
        x, scope = np.array(one['x']), dict(tanh=np.tanh)
        drawn = np.array(one['y'])  # the formula is without the constants, which are the layer's one
        np.testing.assert_allclose(np.ptp(drawn - eval(one['formula'], scope, dict(x=x))), 0, atol=1e-12)
        assert len(one['histogram']) == len(x) - 1
        assert sum(one['histogram']) > 0
    assert 0 <= kernel['not_straight'] <= 1
    assert set(data['receptive_field']) == {'with its blocks', 'blocks off'}
    assert {path.stem for path in (tmp_path / 'out/figures').iterdir()} >= {
        'layer4.kan1-functions', 'layer4.kan2-functions', 'layer4-branch', 'receptive-field', 'cam-a0'}
    text = page.read_text()
    assert text.count('<math>') == 18
    assert 'numpy.tanh(x)' in text
    said = capsys.readouterr()
    assert f'Page: {page}' in said.out
    assert ('inspect: --top, --finetune-iters change nothing here: all functions of ImageClassifier are those of '
            'kernels that its channels share') in said.err


def test_net_of_thousands_of_functions(classifier, tmp_path):
    options = ['--num-images', '4', '--boxes', '1', '--sparsities', '0.5', '0.9', '--finetune-iters', '1', '--symbolic',
               '3', '--top', '5', '--device', 'cpu']
    argv = classifier(KAN_NET)
    page = main([*argv[:-2], *options, *argv[-2:], 'train_dataloader.batch_size=4'])
    checker, data = read(page)
    assert page.stat().st_size < 20e6
    assert sum(layer['functions'] for layer in data['layers'].values()) > 100_000
    assert sum(len(layer['each']) for layer in data['functions'].values()) == 5
    assert [sparsity for sparsity, _ in data['pruning']['curves']['pruned']] == pytest.approx([0.0, 0.5, 0.9], abs=1e-3)
    assert set(data['pruning']['curves']) == {'pruned', 'pruned, then trained 1 iterations'}
    assert len(data['symbolic']['functions']) == 3
    assert all(one['inputs'] >= 4 for one in data['symbolic']['functions'].values())
    assert 'accuracy/top1' in data['symbolic']['metrics']
    for title in ('KAN layers', 'KAN layers: the most important functions', 'KAN layers: grids over their inputs',
                  'KAN layers: what pruning would cost', 'Symbolic fit', 'Where it looks'):
        assert title in checker.headings


def test_a_block_of_many_kernels(classifier, tmp_path):
    argv = classifier(RKANET + "model['backbone'] = dict(block=dict(groups='channels'))\n")
    page = main([*argv[:2], '--num-images', '1', '--skip', 'cam', 'field', 'metric', 'formulas', *argv[2:]])
    checker, data = read(page)
    assert len(data['layers']) == 32 + 128
    assert sum(title.endswith('its functions') for title in checker.headings) == 12
    assert sum(len(layer['each']) == 9 for layer in data['layers'].values()) == 12
    assert 'Of its 160 kernels, each of a group of channels, the 12 with the largest functions' in page.read_text()


def test_given_images_without_a_validation_set(classifier, tmp_path):
    argv = classifier(RKANET)
    images = [str(path) for path in sorted((tmp_path / 'data/val/b').iterdir())]
    page = main([*argv[:2], *images, *argv[2:4], '--skip', 'cam', 'field', 'formulas', '--cfg-options',
                 f'data_root={tmp_path}/nowhere/'])
    _, data = read(page)
    assert data['images'].startswith('3: b0.png')
    assert 'metric' not in data
    assert 'No metric on the validation set of the config: ' in page.read_text()


def test_a_net_that_is_pruned_and_has_few_inputs(classifier, tmp_path):
    conv = "conv_cfg=dict(type='rkan_mm.KANConv2d', basis=dict(type='BSpline', grid_size=3))"
    without_lr = "optimizer=dict(_delete_=True, type='Adam')"
    argv = classifier(KAN_NET.replace(conv, 'init_cfg=None').replace('optimizer=dict(lr=1e-3)', without_lr))
    content = torch.load(argv[1])
    mask = torch.ones_like(content['state_dict']['head.fc.weight'])
    mask[:10] = 0
    content['state_dict']['head.fc.mask'] = mask
    torch.save(content, argv[1])
    page = main([*argv[:-2], '--num-images', '3', '--skip', 'cam', 'field', '--sparsities', '0.25', '0.75',
                 '--symbolic', '2', '--finetune-iters', '1', '--device', 'cpu', *argv[-2:],
                 'train_dataloader.batch_size=4'])
    _, data = read(page)
    assert [sparsity for sparsity, _ in data['pruning']['curves']['pruned']] == pytest.approx([0.5, 0.75])
    assert len(data['pruning']['curves']['pruned, then trained 1 iterations']) == 2
    for one in data['functions']['head.fc']['each'].values():  # some of many: each has its constant
        found = eval(one['formula'], dict(tanh=np.tanh, exp=np.exp), dict(x=np.array(one['x'])))
        np.testing.assert_allclose(found, one['y'], atol=1e-12)
    assert 'no formulas are fitted (fit_forms: at least four inputs are needed, got 3)' in page.read_text()


def test_what_was_found_before_an_error_is_on_the_page(classifier, tmp_path, monkeypatch):
    def show_field(*args):
        raise RuntimeError('out of <memory>')

    monkeypatch.setattr(write, 'show_field', show_field)
    with pytest.raises(RuntimeError):
        main([*classifier(RKANET), '--num-images', '1', '--skip', 'cam', 'metric', 'formulas', '--device', 'cpu'])
    checker, data = read(tmp_path / 'out/index.html')
    assert checker.headings[-1] == 'Broken off'
    assert 'RuntimeError: out of &lt;memory&gt;' in (tmp_path / 'out/index.html').read_text()
    assert len(data['layers']) == 2


def test_a_training_that_the_config_does_not_have_is_missed_at_once():
    subject = SimpleNamespace(model=KANLinear(2, 2), cfg=Config(dict(train_dataloader=dict(batch_size=1))))
    with pytest.raises(PreflightError, match='has no optim_wrapper, and --finetune-iters trains'):
        write._require(subject, Options(finetune_iters=1))


@pytest.mark.slow
def test_detector(tmp_path, root):
    make_shapes(tmp_path / 'shapes', num_train=1, num_val=5, size=64)
    config = str(root / 'configs/mask-rcnn_rkanet18_fpn_shapes.py')
    cfg = load_config(config)
    init_default_scope('mmdet')
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), tmp_path / 'net.pth')
    page = main([config, str(tmp_path / 'net.pth'), '--out-dir', str(tmp_path / 'out'), '--num-images', '3',
                 '--score-thr', '0.1', '--boxes', '1', '--cfg-options', f'data_root={tmp_path}/shapes/'])
    _, data = read(page)
    assert data['metric']['images'] == 3
    assert data['branches']['backbone.bridges.layer4']['size'] > 0


def test_bad_input(classifier, tmp_path, root):
    argv = classifier(RKANET)
    with pytest.raises(PreflightError, match=r'No images to look at: give some, or --num-images above 0'):
        main([*argv, '--num-images', '0'])
    with pytest.raises(PreflightError, match=r"Image '.*none.png' does not exist"):
        main([argv[0], argv[1], str(tmp_path / 'none.png')])
    torn = tmp_path / 'torn.png'
    torn.write_bytes(b'\x89PNG\r\n\x1a\n')
    with pytest.raises(PreflightError, match=r"torn.png' cannot be read as one"):
        main([argv[0], argv[1], str(torn)])
    with pytest.raises(PreflightError, match=r"no module 'layer9' in ImageClassifier; it has data_preprocessor"):
        main([*argv[:4], '--cam-layer', 'layer9', *argv[4:]])
    with pytest.raises(PreflightError, match=r"ImageFolder.*nowhere.* does not exist|data root .*nowhere"):
        main([*argv[:4], '--cfg-options', f'data_root={tmp_path}/nowhere/'])
    (tmp_path / 'data/val/b/b2.png').write_bytes(torn.read_bytes())
    with pytest.raises(PreflightError, match=r"Image '.*b2.png' of the validation set cannot be read as one"):
        main(argv)
    with pytest.raises(PreflightError, match=r"Checkpoint '.*other.pth' does not exist"):
        main([argv[0], str(tmp_path / 'other.pth')])
    other = classifier(KAN_NET)  # another net's weights
    Path(argv[0]).write_text(RKANET.format(base=str(
        root / 'configs/small/rkanet18-w16_1xb64-40e_tiny-imagenet-20.py')))
    with pytest.raises(PreflightError, match=r"Checkpoint '.*net.pth'.*do not fit|entries of the model are not in it"):
        main(other)


def test_models_without_functions(root, tmp_path, classifier):
    plain = root / 'configs/mask-rcnn_r18_fpn_shapes.py'
    argv = classifier(RKANET)
    with pytest.raises(PreflightError, match=r'MaskRCNN has no KAN layer \(RKANet, KANConv\*, KANLinear\)'):
        main([str(plain), argv[1]])


def test_page_stays_small_and_escapes(tmp_path, monkeypatch):
    from matplotlib.figure import Figure
    page = Page(tmp_path, 'a <b> & c', {'key': '<script>'})
    page.figure(page.section('Size'), Figure((1, 1)), 'size', 'caption')
    size = (tmp_path / 'figures/size.png').stat().st_size
    monkeypatch.setattr('rkan_mm.inspection.report.page.MOST_BYTES', 4 * size + 600)  # of three, as base64
    section = page.section('One & two')
    section.text('1 < 2')
    section.table(['x<'], [[float('nan')], [0.123456], ['<']])
    for i in range(3):
        page.figure(section, Figure((1, 1)), f'figure {i}/x', 'caption')
    page.data['infinite'] = float('inf')
    _, data = read(page.write())
    text = (tmp_path / 'index.html').read_text()
    assert '<script>' not in text
    assert '1 &lt; 2' in text
    assert text.count('data:image/png') == 3
    assert 'In figures/figure-2-x.png: the page would be too large.' in text
    assert data['infinite'] is None
    assert len(list((tmp_path / 'figures').iterdir())) == 4
    assert not re.search(r'\{\{ \w+ \}\}', text)


def test_small_parts():
    assert SKIPPED == SECTIONS
    assert spread(10, 4) == [0, 3, 6, 9]
    assert spread(3, 20) == [0, 1, 2]
    assert spread(0, 4) == []
    assert [percent(part) for part in (0.0, 0.00123, 0.5, 0.9996, 1.0)] == ['0', '0.123', '50', '99.96', '100']
    found = most_important(dict(a=torch.tensor([[1.0, 5.0], [2.0, 0.0]]), b=torch.tensor([4.0, 3.0])), 3)
    assert found == dict(a=[(0, 1)], b=[(0,), (1,)])
