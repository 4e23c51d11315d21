"""Every config builds, says its recipe, and stands in metafile.yml and README.md."""

import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from config_files import CONFIGS, ENTRIES, epoch_rates, load
from conftest import ROOT, on_meta
from mmengine.registry import MODELS, TRANSFORMS

each = pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)


@each
def test_builds_with_the_parameters_of_the_metafile(path, quick_build):
    cfg = load(path.stem)
    with on_meta() if cfg.default_scope == 'mmpretrain' else nullcontext():
        model = MODELS.build(cfg.model)
    entry = ENTRIES[path.stem]
    assert entry['Config'] == str(path.relative_to(ROOT))
    assert sum(p.numel() for p in model.parameters()) == entry['Metadata']['Parameters']


@each
def test_is_a_short_leaf_with_a_docstring(path):
    lines = path.read_text().splitlines()
    code = re.sub(r'^""".*?"""\n', '', path.read_text(), flags=re.DOTALL).splitlines()
    assert lines[0].startswith('"""')
    assert len(code) <= 15


def test_metafile_and_configs_name_the_same():
    assert set(ENTRIES) == {path.stem for path in CONFIGS}


@each
def test_readme_has_the_numbers_of_the_metafile(path):
    entry = ENTRIES[path.stem]
    tables = [table.splitlines() for page in ('README.md', 'configs/README.md')
              for table in (ROOT / page).read_text().split('\n\n') if table.startswith('|')]
    found = [line for table in tables for row in table if re.search(rf'[(/]{re.escape(path.name)}\)', row)
             for line in (table[0], row)]
    assert found, f'no table row of README.md or configs/README.md links {path.name}'
    metadata = entry['Metadata']
    text = ' '.join(found)  # with the heads of the tables, which say whose the numbers are
    assert f'{metadata["Parameters"]:,}' in text
    if 'GMACs' in metadata:
        assert f'{metadata["GMACs"]:.3f}' in text
    if 'Published Parameters (M)' in metadata:
        assert f'{metadata["Parameters"]:,} ({metadata["Published Parameters (M)"]:.2f} M)' in text
        assert round(metadata['Parameters'] / 1e6, 2) == metadata['Published Parameters (M)']
    for result in entry['Results']:
        assert result['Source'] in text
        for value in result['Metrics'].values():
            assert f'{value:.2f}' in text


def test_every_number_says_whose_it_is():
    for entry in ENTRIES.values():
        for result in entry['Results']:
            assert result['Source'] in ('paper', 'ours')
            if result['Source'] == 'ours':
                assert {'Command', 'Seeds', 'Machine'} <= set(result)


@pytest.mark.parametrize('name', ['mask-rcnn_r50_fpn_1x_coco', 'mask-rcnn_rkanet50_fpn_1x_coco',
                                  'mask-rcnn_rkanet50_fpn_residualkan-1x_coco'])
def test_coco_recipe(name):
    cfg = load(name)
    assert cfg.train_dataloader.batch_size == 8
    assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
    assert cfg.train_cfg.max_epochs == 12
    np.testing.assert_allclose(epoch_rates(cfg, 12), [0.01] * 8 + [0.001] * 3 + [0.0001], rtol=1e-12)
    model = MODELS.build(cfg.model)
    model.train()
    assert all(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    backbone = cfg.model.backbone.get('backbone', cfg.model.backbone)
    assert backbone.init_cfg == dict(type='Pretrained', checkpoint='torchvision://resnet50')


def test_coco_pipeline_scales_flips_and_jitters():
    cfg = load('mask-rcnn_rkanet50_fpn_1x_coco')
    steps = [TRANSFORMS.build(step) for step in cfg.train_dataloader.dataset.pipeline[2:-1]]
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (480, 640, 3), np.uint8)
    np.random.seed(0)
    shorter, flips, jitters = [], 0, 0
    for _ in range(100):
        results = dict(img=image.copy(), img_shape=(480, 640), ori_shape=(480, 640))
        for step in steps[:2]:
            results = step(results)
        before = results['img'].copy()
        results = steps[2](results)
        shorter.append(min(results['img_shape']))
        flips += results['flip']
        jitters += not np.array_equal(before, results['img'])
    assert 30 < flips < 70
    assert 15 < jitters < 45
    assert 50 < sum(size == 640 for size in shorter) < 90
    assert min(shorter) >= 576
    assert max(shorter) <= 704
    results = dict(img=np.zeros((300, 900, 3), np.uint8), img_shape=(300, 900), ori_shape=(300, 900))
    assert TRANSFORMS.build(cfg.val_dataloader.dataset.pipeline[1])(results)['img_shape'][1] == 1066


def test_the_reference_variant_has_all_anchors_on_all_levels():
    cfg = load('mask-rcnn_rkanet50_fpn_residualkan-1x_coco')
    head = MODELS.build(cfg.model).rpn_head
    anchors = head.prior_generator.grid_priors([(1, 1)] * 5, device='cpu')
    for level in anchors:
        sides = ((level[:, 2] - level[:, 0]) * (level[:, 3] - level[:, 1])).sqrt()
        assert sorted({round(float(side)) for side in sides}) == [32, 64, 128, 256, 512]
        assert len(level) == 15
    mu, sigma = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(cfg.model.data_preprocessor.mean, 255 * mu * (1 + sigma), atol=5e-2)
    np.testing.assert_allclose(cfg.model.data_preprocessor.std, 255 * sigma**2, atol=5e-4)
