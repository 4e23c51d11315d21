"""Classification configs: recipes, schedules, augmentation, pipelines and pairs; each trains and validates a step."""

import math
import re

import numpy as np
import pytest
import torch
from config_files import CONFIGS, ENTRIES, epoch_rates, load
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, TRANSFORMS

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
# data set: its class and folder, classes, pixels, mean and standard deviation, epochs, weight decay
RECIPES = {
    'cifar100': ('CIFAR100', 'cifar100', 100, 128, ([0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761]), 200, 5e-4),
    'cifar10': ('CIFAR10', 'cifar10', 10, 128, ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]), 200, 5e-4),
    'svhn': ('rkan_mm.SVHN', 'svhn', 10, 128, ([0.4377, 0.4438, 0.4728], [0.1980, 0.2010, 0.1970]), 200, 5e-4),
    'tiny-imagenet': ('rkan_mm.TinyImageNet', 'tiny-imagenet-200', 200, 160, IMAGENET, 200, 5e-4),
    'food101': ('Food101', 'food-101', 101, 224, IMAGENET, 200, 5e-4),
    'caltech256': ('rkan_mm.Caltech256', '256_ObjectCategories', 257, 224, IMAGENET, 200, 5e-4),
    'in1k': ('ImageNet', 'imagenet', 1000, 224, IMAGENET, 100, 1e-4),
}
UPSCALED = ('cifar100', 'cifar10', 'svhn', 'tiny-imagenet')
each_recipe = pytest.mark.parametrize('data', RECIPES)
LEAVES = [path.stem for path in CONFIGS if re.search(r'_1xb128-[12]00e_', path.stem)]
SMALL = [path.stem for path in CONFIGS if re.search(r'resnet\d+_8xb16_cifar', path.stem)]


def recipe(data: str) -> Config:
    return load(f'_base_/rkan_{data}')


@each_recipe
def test_recipe_of_optimizer_and_data(data):
    kind, folder, classes, size, (mean, std), epochs, weight_decay = RECIPES[data]
    cfg = recipe(data)
    assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=0.05, momentum=0.9, nesterov=True,
                                               weight_decay=weight_decay)
    assert cfg.train_cfg == dict(by_epoch=True, max_epochs=epochs, val_interval=1)
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=128)
    assert cfg.data_preprocessor.num_classes == classes
    np.testing.assert_allclose(cfg.data_preprocessor.mean, 255 * np.array(mean), rtol=1e-9)
    np.testing.assert_allclose(cfg.data_preprocessor.std, 255 * np.array(std), rtol=1e-9)
    assert cfg.default_hooks.checkpoint.save_best == 'auto'
    assert cfg.custom_hooks == [dict(type='rkan_mm.RunSummaryHook')]
    splits = dict(train='train', val='val' if data in ('in1k', 'tiny-imagenet') else 'test')
    for which, split in splits.items():
        loader = cfg[f'{which}_dataloader']
        assert loader.batch_size == 128
        assert (loader.sampler.shuffle, loader.get('drop_last', False)) == (which == 'train', False)
        dataset = {key: value for key, value in loader.dataset.items() if key != 'pipeline'}
        assert dataset == dict(type=kind, data_root=f'data/{folder}/', split=split)
        assert str(size) in str(loader.dataset.pipeline)
    assert cfg.test_dataloader == cfg.val_dataloader
    assert cfg.data_root == f'data/{folder}/'
    assert cfg.data_hint


def test_a_config_survives_being_written_into_the_work_dir():
    cfg = load('rkan-resnet50_1xb128-200e_svhn')
    assert Config.fromstring(cfg.pretty_text, '.py').to_dict() == cfg.to_dict()


@each_recipe
def test_learning_rate_of_every_epoch(data):
    epochs = RECIPES[data][5]
    expected = [0.05 * (e + 1) / 10 for e in range(10)]
    expected += [1e-5 + (0.05 - 1e-5) * (1 + math.cos(math.pi * (e - 10) / (epochs - 10))) / 2
                 for e in range(10, epochs)]
    rates = epoch_rates(recipe(data), epochs)
    assert len(rates) == epochs
    np.testing.assert_allclose(rates, expected, rtol=0, atol=1e-12)
    assert rates[9] == pytest.approx(0.05, abs=1e-15)
    assert 1e-5 < rates[-1] < 3e-5


@pytest.mark.parametrize('name', LEAVES)
def test_a_config_is_a_recipe_and_a_model(name):
    data = name.rpartition('_')[2]
    cfg, expected = load(name), recipe(data)
    model = cfg.pop('model')
    for key in ('stem', 'every_second'):  # a model's own
        cfg.pop(key, None)
    assert cfg.to_dict() == expected.to_dict()
    assert model.train_cfg == dict(augments=[dict(type='CutMix', alpha=1.0), dict(type='Mixup', alpha=0.2)],
                                   probs=[0.5, 0.3])
    assert model.head.loss == dict(type='CrossEntropyLoss', loss_weight=1.0, use_soft=True)
    assert model.head.num_classes == RECIPES[data][2]


@pytest.mark.parametrize('name', [name for name in LEAVES + SMALL if name.startswith('rkan-')])
def test_rkan_differs_from_its_baseline_by_the_blocks(name):
    rkan = load(name)
    plain = load(re.sub(r'-([246]xl|e)_', '_', name.replace('rkan-', 'plain-' if name in SMALL else '')))
    assert rkan.model.backbone.type == 'rkan_mm.RKANet'
    rkan.model.backbone = rkan.model.backbone.backbone
    assert rkan.model == plain.model


def test_batch_augmentation_in_ten_thousand_draws():
    cfg = load('rkan-resnet101_1xb128-200e_cifar100')
    preprocessor = dict(cfg.data_preprocessor, type='mmpretrain.ClsDataPreprocessor',
                        batch_augments=cfg.model.train_cfg)
    augments = MODELS.build(preprocessor).batch_augments
    counts = dict(CutMix=0, Mixup=0)

    def count(augment):
        def call(inputs, scores):
            counts[type(augment).__name__] += 1
            return inputs, scores
        return call

    augments.augments = [augment and count(augment) for augment in augments.augments]
    np.random.seed(0)
    for _ in range(10_000):
        augments(torch.zeros(1), torch.zeros(1))
    assert counts['CutMix'] / 10_000 == pytest.approx(0.5, abs=0.02)
    assert counts['Mixup'] / 10_000 == pytest.approx(0.3, abs=0.02)
    assert 1 - sum(counts.values()) / 10_000 == pytest.approx(0.2, abs=0.02)


def test_cutmix_and_mixup_have_the_published_ratios():
    """CutMix's labels follow the area that was pasted; MixUp's ratio is of Beta(0.2, 0.2): mostly near 0 or 1."""
    cfg = load('resnet50_1xb128-100e_in1k')
    cutmix, mixup = (augment.mix for augment in MODELS.build(
        dict(type='mmpretrain.ClsDataPreprocessor', num_classes=2, batch_augments=cfg.model.train_cfg)
    ).batch_augments.augments[:2])
    images = torch.stack([torch.zeros(3, 20, 20), torch.ones(3, 20, 20)])
    labels = torch.eye(2)
    np.random.seed(0)
    extreme = 0
    for _ in range(200):
        mixed, scores = cutmix(images.clone(), labels)
        torch.testing.assert_close(scores[:, 1], mixed.mean((1, 2, 3)))
        scores = mixup(images, labels)[1]
        extreme += bool(scores.min() < 0.1)
    assert extreme > 200 * 0.6  # Beta(0.2, 0.2) has 0.66 of its mass within 0.1 of the ends; half of the batches swap


@pytest.mark.parametrize('mode', ['train', 'test'])
@pytest.mark.parametrize('data', UPSCALED)
def test_pipeline_of_upscaled_images_is_the_references(data, mode, tmp_path):
    from PIL import Image
    from torchvision import transforms
    size = RECIPES[data][3]
    loader = recipe(data)[f'{mode}_dataloader']
    steps = [TRANSFORMS.build(step) for step in loader.dataset.pipeline]
    resize = transforms.Resize((size, size), transforms.InterpolationMode.BICUBIC)
    flip = [] if data == 'svhn' else [transforms.RandomHorizontalFlip()]
    theirs = transforms.Compose([resize, *flip, transforms.RandAugment(2, 9)] if mode == 'train' else [resize])
    rng = np.random.default_rng(0)
    for seed in range(10):
        image = rng.integers(0, 255, (32, 32, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / 'image.png')
        results = dict(img=image, img_path=str(tmp_path / 'image.png'), gt_label=3)
        torch.manual_seed(seed)
        for step in steps:
            results = step(results)
        torch.manual_seed(seed)
        expected = np.array(theirs(Image.fromarray(image))).transpose(2, 0, 1)  # RGB
        ours = results['inputs'].numpy()
        np.testing.assert_array_equal(ours[::-1] if recipe(data).data_preprocessor.to_rgb else ours, expected)
    assert results['data_samples'].gt_label.tolist() == [3]


@pytest.mark.parametrize(('data', 'edge'), [('in1k', 256), ('food101', 280), ('caltech256', 280)])
def test_pipeline_of_cropped_images(data, edge):
    cfg = recipe(data)
    resize, crop = cfg.val_dataloader.dataset.pipeline[1:3]
    assert resize == dict(type='ResizeEdge', scale=edge, edge='short', backend='pillow')
    assert crop == dict(type='CenterCrop', crop_size=224)
    steps = cfg.train_dataloader.dataset.pipeline
    assert [step.type for step in steps] == ['LoadImageFromFile', 'RandomResizedCrop', 'RandomFlip', 'RandAugment',
                                             'PackInputs']
    assert steps[1].scale == 224
    for pipeline, shape in ((steps, (300, 200)), (cfg.val_dataloader.dataset.pipeline, (300, 290))):
        results = dict(img=np.zeros((*shape, 3), np.uint8), img_shape=shape, ori_shape=shape, gt_label=0)
        for step in pipeline[1:]:
            results = TRANSFORMS.build(step)(results)
        assert results['inputs'].shape == (3, 224, 224)


def test_randaugment_has_torchvisions_operations_at_magnitude_9():
    from torchvision.transforms import RandAugment
    cfg = load('rkan-resnet50_1xb128-100e_in1k')
    ours = TRANSFORMS.build(cfg.train_dataloader.dataset.pipeline[3])
    theirs = RandAugment(num_ops=2, magnitude=9)._augmentation_space(31, (224, 224))
    assert len(ours.transforms) == len(theirs)
    values = {}
    for transform in ours.transforms:
        axis = dict(horizontal='X', vertical='Y').get(getattr(transform, 'direction', ''), '')
        key = type(transform).__name__ + axis
        values.setdefault(key, transform.random_magnitude() if transform.magnitude_range else None)
        if key not in ('AutoContrast',):
            assert transform.prob == 1
    names = dict(ShearX='ShearX', ShearY='ShearY', Rotate='Rotate', Brightness='Brightness', ColorTransform='Color',
                 Contrast='Contrast', Sharpness='Sharpness', Solarize='Solarize')
    for name, torchvision_name in names.items():
        magnitudes, _ = theirs[torchvision_name]
        scale = 255 / float(magnitudes[0]) if name == 'Solarize' else 1  # of 1 since torchvision works on floats too
        assert values[name] == pytest.approx(float(magnitudes[9]) * scale, rel=1e-5)
    assert values['TranslateX'] * 224 == pytest.approx(float(theirs['TranslateX'][0][9]), rel=1e-5)
    assert math.ceil(values['Posterize']) == int(theirs['Posterize'][0][9])
    assert ours.num_policies == 2
    for transform in ours.transforms:
        assert getattr(transform, 'pad_val', 0) in (0, (0, 0, 0))
        assert getattr(transform, 'interpolation', 'nearest') == 'nearest'


@pytest.mark.parametrize('name', SMALL)
def test_mmpretrains_small_recipe(name):
    cfg = load(name)
    theirs = Config.fromstring(f"_base_ = 'mmpretrain::resnet/{name.partition('-')[2]}.py'", '.py')
    for key in ('train_dataloader', 'val_dataloader', 'optim_wrapper', 'param_scheduler', 'train_cfg',
                'data_preprocessor'):
        assert cfg[key] == theirs[key], key
    assert cfg.train_dataloader.dataset.pipeline[0] == dict(type='RandomCrop', crop_size=32, padding=4)
    backbone = cfg.model.backbone.get('backbone', cfg.model.backbone)
    assert backbone == theirs.model.backbone
    assert backbone.type == 'ResNet_CIFAR'


FAMILIES = ('resnet', 'resnext', 'wide-resnet', 'resnetv1d', 'resnest', 'res2net', 'ecanet', 'senet', 'gcnet', 'cbam',
            'pyramidnet', 'regnet', 'densenet', 'sanet', 'simam', 'ela')


@pytest.mark.parametrize('family', FAMILIES)
def test_every_family_has_a_pair_of_configs(family):
    plain = {name for name in LEAVES if re.match(family + r'[y-]?[l-]?\d.*cifar100', name)}
    assert plain
    assert {f'rkan-{name}' for name in plain} <= set(LEAVES)


ROWS = {  # the published tables
    'cifar100': 'resnet50 resnet101 resnet152 rkan-resnet101-e rkan-resnet101-2xl rkan-resnet101-4xl '
                'rkan-resnet101-6xl resnext50-32x4d resnext101-32x8d regnety-3.2gf regnety-8gf regnety-32gf '
                'densenet121 densenet169 densenet201 pyramidnet200 resnest101 senet101 resnetv1d101 wide-resnet101-2',
    'tiny-imagenet': 'resnet34 resnet50 resnet101 resnet152 resnext50-32x4d resnext101-32x8d wide-resnet101-2 '
                     'regnetx-3.2gf regnety-3.2gf regnety-8gf regnety-32gf densenet121 densenet169 densenet201 '
                     'densenet161 convnext-tiny swin-tiny',
    'in1k': 'resnet34 resnet50 resnet101 resnet152 rkan-resnet50-2xl rkan-resnet50-4xl rkan-resnet50-6xl ela-l50 '
            'senet50 regnetx-3.2gf regnety-3.2gf regnety-8gf densenet121 densenet169 densenet201',
    'food101': 'resnet50 resnet101', 'cifar10': 'resnet50 resnet101', 'svhn': 'resnet50 resnet101',
}


@pytest.mark.parametrize('data', ROWS)
def test_every_published_row_has_its_configs(data):
    schedule = f'_1xb128-{RECIPES[data][5]}e_{data}'
    for row in ROWS[data].split():
        for name in (row,) if row.startswith('rkan-') else (row, f'rkan-{row}'):
            assert name + schedule in LEAVES
            published = data not in ('cifar10', 'svhn') and name + data != 'rkan-wide-resnet101-2cifar100'
            assert bool(ENTRIES[name + schedule]['Results']) == published


def test_a_step_of_cropped_images():
    """The whole path of a batch: pipeline, batch augmentation, soft loss, at reduced width."""
    cfg = load('rkan-resnet50_1xb128-100e_in1k')
    cfg.model.backbone.backbone.update(base_channels=8, stem_channels=8)
    cfg.model.head.in_channels = 256
    _train_on(cfg, cfg.train_dataloader.dataset.pipeline[1:], (96, 128), 224)


def test_a_step_of_upscaled_images():
    cfg = load('rkan-ela-l50_1xb128-200e_cifar100')
    cfg.model.backbone.backbone.backbone.update(base_channels=8, stem_channels=8)
    cfg.model.head.in_channels = 256
    _train_on(cfg, cfg.train_dataloader.dataset.pipeline, (32, 32), 128)


def _train_on(cfg: Config, pipeline: list[dict], shape: tuple[int, int], size: int) -> None:
    model = MODELS.build(cfg.model)
    steps = [TRANSFORMS.build(step) for step in pipeline]
    samples = []
    for label in range(2):
        image = np.random.default_rng(label).integers(0, 255, (*shape, 3), np.uint8)
        results = dict(img=image, gt_label=label, img_shape=shape, ori_shape=shape)
        for step in steps:
            results = step(results)
        samples.append(results)
    data = model.data_preprocessor(pseudo_collate(samples), training=True)
    assert data['inputs'].shape == (2, 3, size, size)
    loss = model(**data, mode='loss')['loss']
    assert loss.isfinite()
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize('name', LEAVES + SMALL)
def test_a_training_and_a_validation_step(name):
    """At full width, on two images of 64 x 64."""
    from mmpretrain.structures import DataSample
    cfg = load(name)
    model = MODELS.build(cfg.model)
    data = dict(inputs=[torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in range(2)],
                data_samples=[DataSample().set_gt_label(label) for label in (0, cfg.model.head.num_classes - 1)])
    trained = {key: value for key, value in model.named_parameters() if key == 'head.fc.weight' or 'block.re' in key}
    before = {key: value.clone() for key, value in trained.items()}
    model.train()
    losses = model.train_step(data, build_optim_wrapper(model, cfg.optim_wrapper))
    assert losses['loss'].isfinite()
    assert len(trained) == 1 + ('rkan' in name) + ('-e_' in name)
    for key, value in trained.items():
        assert value.isfinite().all()
        assert not torch.equal(value, before[key]), key
    model.eval()
    evaluator = Evaluator(cfg.val_evaluator)
    with torch.no_grad():
        evaluator.process(model.val_step(data), data)
    assert set(evaluator.evaluate(2)) >= {'accuracy/top1'}


@pytest.mark.parametrize('name', [
    name if 'regnety-3.2gf' in name and 'cifar' in name else pytest.param(name, marks=pytest.mark.slow)
    for name in LEAVES + SMALL])
def test_macs_are_those_of_the_metafile(name, quick_build):
    from mmengine.analysis import FlopAnalyzer

    from rkan_mm.benchmarks.models import build
    model = build(load(name).model.to_dict(), 'mmpretrain').eval()
    size = 32 if name in SMALL else RECIPES[name.rpartition('_')[2]][3]
    flops = FlopAnalyzer(model, torch.zeros(1, 3, size, size))
    flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert flops.total() / 1e9 == pytest.approx(ENTRIES[name]['Metadata']['GMACs'], abs=2e-3)
