"""Every config builds, says its recipe, and stands in metafile.yml and README.md."""

import re
from contextlib import nullcontext
from pathlib import Path

import mmdet
import numpy as np
import pytest
import torch
import yaml
from config_files import CONFIGS, ENTRIES, LIBRARIES, METAFILES, PAGES, PATHS, epoch_rates, load
from conftest import ROOT, on_meta
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, TRANSFORMS

each = pytest.mark.parametrize('path', PATHS.values(), ids=lambda path: path.stem)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_builds_with_the_parameters_of_the_metafile(path, quick_build):
    cfg = load(path.stem)
    entry = ENTRIES[path.stem]
    large = cfg.default_scope == 'mmpretrain' and entry['Metadata']['Parameters'] > 5e6
    with on_meta() if large else nullcontext():
        model = MODELS.build(cfg.model)
    assert entry['Config'] == str(path.relative_to(ROOT))
    numbers = entry['Metadata']
    expected = numbers.get(f'Parameters on mmdet {mmdet.__version__}', numbers['Parameters'])
    assert sum(p.numel() for p in model.parameters()) == expected


@each
def test_is_a_short_leaf_with_a_docstring(path):
    lines = path.read_text().splitlines()
    code = re.sub(r'^""".*?"""\n', '', path.read_text(), flags=re.DOTALL).splitlines()
    assert lines[0].startswith('"""')
    assert len(code) <= 15


def paths_in(node):
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ():
        yield from paths_in(child)
    if isinstance(node, str) and node.startswith('data/'):
        yield node


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_data_lie_below_the_data_root(path):
    """What does not would stay where it is under `--cfg-options data_root=...`."""
    cfg = load(path.stem)
    if 'data_root' in cfg:
        read = [cfg[name] for name in cfg if name.endswith(('_dataloader', '_evaluator'))]
        assert [each for each in paths_in(read) if not f'{each}/'.startswith(cfg.data_root)] == []


@pytest.mark.parametrize('path', [path for path in CONFIGS if re.search(r'\dxb\d', path.stem)],
                         ids=lambda path: path.stem)
def test_the_lr_is_for_the_batch_in_the_name(path):
    """Or `--auto-scale-lr` would change it where nothing is to be scaled."""
    cfg = load(path.stem)
    gpus, batch = map(int, re.search(r'(\d+)xb(\d+)', path.stem).groups())
    assert cfg.train_dataloader.batch_size == batch
    assert cfg.get('auto_scale_lr', dict(base_batch_size=gpus * batch))['base_batch_size'] == gpus * batch


def test_metafile_and_configs_name_the_same():
    assert set(ENTRIES) == set(PATHS)
    assert len(ENTRIES) == len(PATHS) == sum(len(yaml.safe_load(path.read_text())['Models']) for path in METAFILES)


@each
def test_readme_has_the_numbers_of_the_metafile(path):
    entry = ENTRIES[path.stem]
    tables = [table.splitlines() for page in (ROOT / 'README.md', *PAGES)
              for table in page.read_text().split('\n\n') if table.startswith('|')]
    found = [line for table in tables for row in table if re.search(rf'[(/]{re.escape(path.name)}\)', row)
             for line in (table[0], row)]
    assert found, f'no table row of README.md or configs/*/README.md links {path.name}'
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
            assert (f'{value:.1f}' if result['Source'] == 'mmdet' else f'{value:.2f}') in text
    if 'Plain Config' in metadata:
        assert metadata['Plain Config'] in text
        assert all(str(metadata[key]) in text for key in metadata if key.startswith('Plain '))


def test_every_number_says_whose_it_is():
    for entry in ENTRIES.values():
        for result in entry['Results']:
            assert result['Source'] in ('paper', 'mmdet', 'ours')
            if result['Source'] == 'ours':
                assert {'Command', 'Seeds', 'Machine'} <= set(result)


RKAN_COCO = [path.stem for path in PATHS.values() if re.search(r'^mask-rcnn_.*_fpn_(residualkan-)?1x_coco$', path.stem)]
RKAN_VOC = [path.stem for path in PATHS.values() if path.stem.endswith('_1x_voc0712')]
MMDET = [path.stem for path in PATHS.values() if 'mmdet-' in path.stem]
# config of ours: the one of mmdet that it equals but for the backbone, and what else differs on purpose
MMDET_BASES = {name: 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco' for name in MMDET if name.startswith('mask-rcnn')} | {
    name: ENTRIES[name]['Metadata']['Plain Config'][len('mmdet::'):-len('.py')]
    for name in MMDET if 'Plain Config' in ENTRIES[name]['Metadata']}
ON_PURPOSE = {
    'mask-rcnn_rkanet50-zero-init_fpn_mmdet-1x_coco': ('load_from', 'optim_wrapper.optimizer.lr'),
    'dino-4scale_rkanet50_mmdet-8xb2-12e_coco': ('optim_wrapper.paramwise_cfg.custom_keys.backbone.bridges.lr_mult',),
    'rtmdet-s_rkan-cspnext_mmdet-8xb32-300e_coco': ('auto_scale_lr.base_batch_size',),
}


def weights_of(backbone: dict) -> str | None:
    while 'backbone' in backbone:
        backbone = backbone['backbone']
    return (backbone.get('init_cfg') or {}).get('checkpoint')


def expected_weights(name: str) -> str:
    if 'caffe' in name:
        return 'open-mmlab://detectron/resnet50_caffe'
    if re.search('_x50|rkanext50', name):
        return 'torchvision://resnext50_32x4d'
    return f'torchvision://resnet{101 if "101" in name else 50}'


@pytest.mark.parametrize('name', RKAN_COCO + RKAN_VOC)
def test_rkan_detection_recipe(name, quick_build):
    cfg = load(name)
    assert cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 8
    assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
    assert cfg.train_cfg.max_epochs == 12
    np.testing.assert_allclose(epoch_rates(cfg, 12), [0.01] * 8 + [0.001] * 3 + [0.0001], rtol=1e-12)
    for split, datasets in (('train', cfg.train_dataloader.dataset.get('datasets', [cfg.train_dataloader.dataset])),
                            ('val', [cfg.val_dataloader.dataset]), ('test', [cfg.test_dataloader.dataset])):
        for dataset in datasets:
            assert set(re.findall(r"'scale': (\(.*?\))", str(dataset.pipeline))) == {'(1066, 640)'}, split
    model = MODELS.build(cfg.model)
    model.train()
    assert all(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert weights_of(cfg.model.backbone) == expected_weights(name)


def test_voc_data():
    cfg = load('faster-rcnn_rkanet50_fpn_1x_voc0712')
    assert [dataset.ann_file for dataset in cfg.train_dataloader.dataset.datasets] == [
        'VOC2007/ImageSets/Main/trainval.txt', 'VOC2012/ImageSets/Main/trainval.txt']
    assert cfg.test_dataloader.dataset.ann_file == 'VOC2007/ImageSets/Main/test.txt'
    assert [(metric.eval_mode, metric.get('iou_thrs', 0.5)) for metric in cfg.test_evaluator] == [
        ('11points', 0.5), ('area', 0.5)]
    assert cfg.model.roi_head.bbox_head.num_classes == 20
    coco = load('mask-rcnn_r50_fpn_1x_coco')
    assert cfg.train_pipeline[2:] == coco.train_pipeline[2:]
    assert cfg.train_pipeline[1] == dict(type='LoadAnnotations', with_bbox=True)


@pytest.mark.parametrize('name', MMDET)
def test_mmdet_recipe_differs_in_the_backbone_alone(name):
    cfg = load(name).to_dict()
    base = Config.fromfile(f'{Path(mmdet.__file__).parent}/.mim/configs/{MMDET_BASES[name]}.py').to_dict()
    for each_cfg in (cfg, base):
        each_cfg['model'].pop('backbone')
        for key in ('custom_imports', 'data_hint'):
            each_cfg.pop(key, None)
    ours, theirs = (dict(flatten(each_cfg)) for each_cfg in (cfg, base))
    different = {key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)}
    assert different == set(ON_PURPOSE.get(name, ()))


def flatten(node, prefix=''):
    """The leaves of a nested config by their path, without the scopes that a base of another package is marked with."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, value in children:
        if key != '_scope_':
            yield from flatten(value, f'{prefix}.{key}' if prefix else str(key))
    if not children:
        yield prefix, node


@pytest.mark.parametrize('name', [name for name in MMDET if name.startswith('mask-rcnn')])
def test_mmdet_1x_recipe(name, quick_build):
    cfg = load(name)
    assert (cfg.train_dataloader.batch_size, cfg.auto_scale_lr.base_batch_size) == (2, 16)
    lr = 0.002 if 'zero-init' in name else 0.02
    assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=lr, momentum=0.9, weight_decay=1e-4)
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.type, warm_up.end, warm_up.by_epoch) == ('LinearLR', 500, False)
    rates = epoch_rates(Config(dict(optim_wrapper=cfg.optim_wrapper, param_scheduler=[steps])), 12)
    np.testing.assert_allclose(rates, [lr] * 8 + [lr / 10] * 3 + [lr / 100], rtol=1e-12)
    for split in ('train', 'val', 'test'):
        pipeline = cfg[f'{split}_dataloader'].dataset.pipeline
        assert [step.scale for step in pipeline if step.type == 'Resize'] == [(1333, 800)]
    model = MODELS.build(cfg.model)
    model.train()
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    stem = model.backbone.get_submodule('backbone' if name.count('rkan') else '')
    expected = {p for part in ('conv1', 'bn1', 'layer1') for p in stem.get_submodule(part).parameters()}
    if re.search('senet|ecanet', name):  # its layers in layer1 are new
        expected -= set(stem.layer1.parameters())
    assert {p for p in model.parameters() if not p.requires_grad} == expected, frozen
    assert not any(m.training for m in stem.modules() if isinstance(m, torch.nn.BatchNorm2d))
    for bridge in getattr(model.backbone, 'bridges', {}).values():
        assert all(m.training for m in bridge.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert weights_of(cfg.model.backbone) == (None if 'zero-init' in name else expected_weights(name))


def test_dino_learns_the_block_at_the_full_rate(quick_build):
    cfg = load('dino-4scale_rkanet50_mmdet-8xb2-12e_coco')
    model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    rates = {id(p): group['lr'] for group in wrapper.param_groups for p in group['params']}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            inner = name.startswith('backbone.backbone')
            assert rates[id(parameter)] == pytest.approx(1e-5 if inner else 1e-4), name


@pytest.mark.parametrize(('part', 'rkan'), [
    ('r50', 'rkanet50'), ('r101', 'rkanet101'), ('x50-32x4d', 'rkanext50'), ('senet50', 'rkan-senet50')])
@pytest.mark.parametrize('recipe', ['1x', 'mmdet-1x'])
def test_rkan_and_its_plain_peer_differ_in_the_block_alone(part, rkan, recipe):
    plain, with_rkan = (load(f'mask-rcnn_{name}_fpn_{recipe}_coco') for name in (part, rkan))
    assert with_rkan.model.backbone == dict(type='rkan_mm.RKANet', backbone=plain.model.backbone)
    for cfg in (plain, with_rkan):
        cfg.model.pop('backbone')
        cfg.pop('custom_imports', None)
    assert plain.to_dict() == with_rkan.to_dict()


def test_mmdets_numbers_are_those_of_its_metafiles():
    configs = Path(mmdet.__file__).parent / '.mim/configs'
    found = 0
    for name, entry in ENTRIES.items():
        if PATHS[name].parent.name in LIBRARIES:
            continue
        plain = {result['Task']: result['Metrics'] for result in entry['Results'] if result['Source'] == 'mmdet'}
        metadata = entry['Metadata']
        if 'Plain Config' in metadata:
            plain = {'Object Detection': {'box AP': metadata['Plain Box AP']}}
            if 'Plain Mask AP' in metadata:
                plain['Instance Segmentation'] = {'mask AP': metadata['Plain Mask AP']}
        if not plain:
            continue
        base = metadata['Plain Config'].removeprefix('mmdet::') if 'Plain Config' in metadata else \
            f'mask_rcnn/{name.replace("mmdet-1x", "1x")}.py'
        theirs = yaml.safe_load((configs / base).with_name('metafile.yml').read_text())
        model, = [each for each in theirs['Models'] if each['Name'] == Path(base).stem]
        assert {result['Task']: result['Metrics'] for result in model['Results']} == plain
        found += 1
    assert found == 8


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
