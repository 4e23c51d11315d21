"""RKANet in mmsegmentation and mmrotate, by our tools: two steps and a test on drawn data."""

import json
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
from config_files import PATHS

from rkan_mm.apis import runner
from rkan_mm.apis.infer import main as infer

# mmrotate's metric leaves a temporary folder behind
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')]


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8))


def ade20k(root):
    for split in ('training', 'validation'):
        for i in range(4):
            picture(root / f'images/{split}/{i}.jpg', i)
            labels = np.random.default_rng(i).integers(0, 151, (64, 64), np.uint8)
            (root / f'annotations/{split}').mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / f'annotations/{split}/{i}.png'), labels)
    return [
        'model.data_preprocessor.size=(64,64)', 'model.decode_head.channels=16', 'model.auxiliary_head.channels=16',
        'train_dataloader.dataset.pipeline.2.scale=(64,64)', 'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
        'test_dataloader.dataset.pipeline.1.scale=(64,64)', 'train_cfg.max_iters=2', 'param_scheduler.0.end=2']


def dota(root):
    for i in range(4):
        picture(root / f'trainval/images/{i}.png', i)
        (root / 'trainval/annfiles').mkdir(exist_ok=True)
        (root / f'trainval/annfiles/{i}.txt').write_text('10 10 50 20 45 40 5 30 plane 0\n')
    scale = 'dataset.pipeline.3.scale=(64,64)'
    return [
        f'train_dataloader.{scale}', 'test_dataloader.dataset.pipeline.1.scale=(64,64)', 'train_cfg.max_epochs=1',
        'test_dataloader.dataset.data_prefix.img_path=trainval/images/',
        'test_dataloader.dataset.ann_file=trainval/annfiles/',
        'test_evaluator.format_only=False', 'model.rpn_head.feat_channels=16', 'model.neck.out_channels=16',
        'model.rpn_head.in_channels=16', 'model.roi_head.bbox_head.in_channels=16',
        'model.roi_head.bbox_roi_extractor.out_channels=16', 'model.roi_head.bbox_head.fc_out_channels=16']


@pytest.mark.parametrize(('library', 'name', 'draw', 'pretrained', 'metric'), [
    ('mmseg', 'upernet_rkanet50_mmseg-4xb4-160k_ade20k-512x512', ade20k, 'model.pretrained=None', 'mIoU'),
    ('mmrotate', 'oriented-rcnn-le90_rkanet50_fpn_mmrotate-1x_dota', dota, 'model.backbone.backbone.init_cfg=None',
     'dota/mAP'),
])
def test_trains_and_tests(library, name, draw, pretrained, metric, tmp_path):
    if not find_spec(library):
        pytest.skip(f'needs {library}')
    options = draw(tmp_path / 'data')
    options += [f'data_root={tmp_path}/data', pretrained, 'model.backbone.backbone.base_channels=8',
                'model.backbone.backbone.stem_channels=8', 'train_dataloader.batch_size=2',
                *(f'{split}_dataloader.{setting}' for split in ('train', 'test')
                  for setting in ('num_workers=0', 'persistent_workers=False'))]
    if library == 'mmseg':
        options += ['model.decode_head.in_channels=[32,64,128,256]', 'model.auxiliary_head.in_channels=128']
    else:
        options += ['model.neck.in_channels=[32,64,128,256]']
    config, work = str(PATHS[name]), tmp_path / 'work'
    trained = runner.train([config, '--work-dir', str(work), '--no-validate', '--cfg-options', *options])
    assert trained.iter == 2
    checkpoint = (work / 'last_checkpoint').read_text()
    metrics = runner.test([config, checkpoint, '--work-dir', str(work), '--cfg-options', *options])
    assert np.isfinite(metrics[metric])
    pictures = sorted(str(path) for path in (tmp_path / 'data').rglob('*') if path.suffix in ('.jpg', '.png') and (
        'images' in path.parts))[:3]
    out = tmp_path / 'out'
    infer([config, checkpoint, *pictures, '--out-dir', str(out), '--batch-size', '2', '--cfg-options', *options])
    assert sorted(path.name for path in (out / 'vis').iterdir()) == [Path(path).name for path in pictures]
    preds = sorted((out / 'preds').iterdir())
    if library == 'mmseg':
        assert [cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape for path in preds] == [(64, 64)] * 3
    else:
        boxes = json.loads(preds[0].read_text())['bboxes']
        assert np.array(boxes).reshape(-1, 5).shape == (len(boxes), 5)
