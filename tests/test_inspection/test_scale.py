"""Large data sets, nets and pages: nothing of an image's size is kept, and the page has its limit."""

import contextlib
import sys
import types

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import BaseDataElement, InstanceData
from mmpretrain.structures import DataSample
from mnist import write_mnist

from rkan_mm.apis.inspect import at_least, main, part, without_effect
from rkan_mm.apis.runner import load_config
from rkan_mm.inspection import Recorder, formula
from rkan_mm.inspection.report import Options, look
from rkan_mm.inspection.report.page import Page
from rkan_mm.inspection.report.study import Study
from rkan_mm.inspection.subject import Samples, Subject, light
from rkan_mm.models import KANLinear, RKANBlock
from rkan_mm.preflight import PreflightError


@pytest.fixture
def fmnist(tmp_path, root):
    """Arguments for a net on a data set that is one file."""
    write_mnist(tmp_path / 'data', sizes=(4, 40), height=28, width=28)
    config = str(root / 'configs/small/rkanet18-w8_1xb128-4e_fmnist.py')
    init_default_scope('mmpretrain')
    model = MODELS.build(load_config(config).model)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'net.pth')
    return [config, str(tmp_path / 'net.pth'), '--out-dir', str(tmp_path / 'out'), '--device', 'cpu', '--num-images',
            '4', '--cfg-options', f'data_root={tmp_path}/data/']


def test_images_that_are_no_files(fmnist, tmp_path):
    pytest.importorskip('pytorch_grad_cam')
    page = main([*fmnist[:-2], '--boxes', '1', '--skip', 'formulas', *fmnist[-2:]])
    assert 'images</dt><dd>4: image-0, image-13, image-26, image-39' in page.read_text()
    assert {path.stem for path in (tmp_path / 'out/figures').iterdir()} >= {'layer4-branch', 'cam-image-0'}
    picture = tmp_path / 'picture.png'
    picture.write_bytes(b'')
    with pytest.raises(PreflightError, match='its data set is one file, and its pipeline loads no images from files'):
        Subject(load_config(fmnist[0]), fmnist[1], [str(picture)], device='cpu')


def test_samples_are_prepared_when_asked_for():
    asked = []
    samples = Samples(lambda i: asked.append(i) or i, 5)
    assert (len(samples), asked) == (5, [])
    assert samples[1:3] == [1, 2]
    assert samples[-1] == 4
    assert list(samples) == [0, 1, 2, 3, 4]
    assert asked == [1, 2, 4, 0, 1, 2, 3, 4]


def test_predictions_are_kept_without_masks():
    from mmdet.structures import DetDataSample
    found = DetDataSample(metainfo=dict(img_id=3), gt_instances=InstanceData(labels=torch.ones(1)))
    found.pred_instances = InstanceData(bboxes=torch.rand(2, 4), scores=torch.rand(2), labels=torch.arange(2),
                                        masks=torch.ones(2, 500, 500, dtype=torch.bool))
    kept = light(found)
    assert set(kept.pred_instances.keys()) == {'bboxes', 'labels', 'scores'}
    assert (kept.img_id, 'gt_instances' in kept) == (3, False)
    assert kept.pred_instances.bboxes.equal(found.pred_instances.bboxes)
    sample = DataSample().set_pred_score(torch.tensor([0.1, 0.9])).set_pred_label(1).set_gt_label(0)
    assert light(sample).pred_label.item() == 1
    assert light(sample).gt_label.item() == 0


def test_formulas_without_room_go_to_files(tmp_path, monkeypatch):
    pytest.importorskip('sympy')
    page, found = Page(tmp_path, 'title', {}), list(formula(KANLinear(2, 1)).functions.values())
    page.formulas(page.section('a'), found, ['constant = 1'], 'fc-formulas')
    assert not (tmp_path / 'formulas').exists()
    monkeypatch.setattr('rkan_mm.inspection.report.page.MOST_BYTES', 100)
    page.formulas(page.section('b'), found, [], 'fc-formulas')
    assert '2 formulas are in formulas/, as NumPy and LaTeX' in page.write().read_text()
    scope: dict = {}
    exec((tmp_path / 'formulas/fc-formulas.py').read_text(), scope)
    x = np.linspace(-1, 1, 5)
    np.testing.assert_allclose(scope['phi_0_1'](x), found[1](x), rtol=1e-12)
    assert r'\begin{cases}' in (tmp_path / 'formulas/fc-formulas.tex').read_text()


def test_pictures_of_one_name_are_two_files(tmp_path):
    from matplotlib.figure import Figure
    page = Page(tmp_path, 'title', {})
    for _ in range(3):
        page.figure(page.section('a'), Figure((1, 1)), 'cam-001', 'caption')
    assert {path.name for path in (tmp_path / 'figures').iterdir()} == {'cam-001.png', 'cam-001-2.png', 'cam-001-3.png'}


def test_many_functions_are_several_figures(tmp_path, monkeypatch):
    monkeypatch.setattr('rkan_mm.inspection.report.study.MOST_DRAWN', 3)
    layer = KANLinear(20, 10)
    study = object.__new__(Study)
    study.page = Page(tmp_path, 'title', {})
    with Recorder(layer, keep={'': [(o, i) for o in range(10) for i in range(20)]}, num_samples=7) as recorder:
        layer(torch.randn(30, 20))
    assert len(recorder[''].samples((3, 3))[0]) == 7
    indices = recorder[''].functions.indices()[:4]
    study.functions(study.page.section('a'), recorder[''], 'fc', 'caption', indices)
    assert {path.name for path in (tmp_path / 'figures').iterdir()} == {'fc.png', 'fc-2.png'}


def test_pictures_are_as_the_model_has_them(tmp_path, monkeypatch, root):
    from rkan_mm.datasets.shapes import make_shapes
    from rkan_mm.inspection.report import where
    make_shapes(tmp_path / 'shapes', num_train=1, num_val=2, size=64)
    cfg = load_config(str(root / 'configs/mask-rcnn_rkanet18_fpn_shapes.py'), dict(data_root=f'{tmp_path}/shapes/'))
    cfg.val_dataloader.dataset.pipeline = [
        dict(type='LoadImageFromFile'), dict(type='Resize', scale=(48, 40), keep_ratio=False),
        dict(type='Pad', size=(72, 72)), dict(type='PackDetInputs')]
    init_default_scope('mmdet')
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), tmp_path / 'net.pth')
    subject = Subject(cfg, str(tmp_path / 'net.pth'), num_images=1, device='cpu')
    seen, whole = subject.as_seen(0), subject.picture(0)
    assert seen.shape == (96, 96, 3)
    assert not seen[40:].any()
    assert not seen[:, 48:].any()
    np.testing.assert_allclose(seen[:40, :48].mean((0, 1)), whole.mean((0, 1)), atol=3)  # RGB, all of the picture
    drawn = {}
    monkeypatch.setattr(where, 'draw_activation_maps',
                        lambda image, maps, box: drawn.update(image=image, maps=maps, box=box))
    monkeypatch.setattr(where, 'activation_map', lambda model, layer, x, *args: np.zeros(x.shape[2:]))
    found = InstanceData(bboxes=torch.tensor([[8.0, 16, 32, 64]]), labels=torch.tensor([0]), scores=torch.tensor([0.9]))
    study = types.SimpleNamespace(
        subject=subject, options=Options(), trained=[BaseDataElement(pred_instances=found)], say=print,
        page=types.SimpleNamespace(section=lambda title: Page(tmp_path, '', {}).section(title),
                                   figure=lambda *args: None), without_blocks=contextlib.nullcontext)
    where.show_where(study, 'layer4', None)
    assert drawn['image'].shape[:2] == drawn['maps']['Grad-CAM'].shape == (96, 96)
    assert drawn['box'] == [6, 10, 24, 40]


def test_options_without_effect():
    block, net = RKANBlock(4, 4), KANLinear(2, 2)
    assert without_effect(['boxes', 'symbolic'], [], block) == []
    assert without_effect(['top', 'sparsities'], [], net) == []
    (shared,) = without_effect(['sparsities'], [], block)
    assert shared == ('--sparsities changes nothing here: all functions of RKANBlock are those of kernels that its '
                      'channels share, which are drawn whole and not pruned.')
    assert without_effect(['eval_images', 'finetune_iters'], ['metric'], net) == [
        '--eval-images, --finetune-iters change nothing here: the metric is left out.']
    assert without_effect(['boxes', 'cam_layer'], ['cam'], net) == [
        '--boxes changes nothing here: maps of where the model looks are left out.']


@pytest.mark.parametrize(('option', 'value', 'said'), [
    ('--top', '0', 'expected a whole number of at least 1, got'), ('--symbolic', '-1', 'of at least 0'),
    ('--eval-images', 'some', 'of at least 1'), ('--sparsities', '1.5', 'expected a number from 0 to 1'),
    ('--score-thr', 'nan', 'expected a number from 0 to 1')])
def test_numbers_are_checked(option, value, said, capsys):
    with pytest.raises(SystemExit):
        main(['config.py', 'net.pth', f'{option}={value}'])
    assert said in capsys.readouterr().err
    assert at_least(1)('3') == 3
    assert part('0.5') == 0.5


@pytest.mark.parametrize(('package', 'options', 'said'), [
    ('sympy', Options(), 'A formula needs the package sympy'),
    ('scipy', Options(skip=['cam']), 'The formula of a B-spline needs the package scipy'),
    ('scipy', Options(skip=['cam', 'formulas'], symbolic=3), 'A symbolic fit needs the package scipy'),
    ('pytorch_grad_cam', Options(skip=['formulas']), 'A class activation map needs the package grad-cam')])
def test_missing_packages_are_named_before_the_work(package, options, said, monkeypatch):
    for name in ('sympy', 'scipy', 'pytorch_grad_cam'):
        monkeypatch.setitem(sys.modules, name, None if name == package else types.ModuleType(name))
    subject = types.SimpleNamespace(model=KANLinear(2, 2, basis=dict(type='BSpline')))
    with pytest.raises(PreflightError, match=rf"{said}, which is not installed: pip install 'rkan_mm\[inspect\]'"):
        look(subject, 'nowhere', options)
