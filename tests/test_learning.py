"""That models learn: the demo on drawn shapes, and real photographs where they are at hand."""

import os
import re
from pathlib import Path

import pytest
from config_files import PATHS
from conftest import ROOT

from rkan_mm.apis import demo, runner
from rkan_mm.datasets.subset import subset_coco

OVERFIT = 'mask-rcnn_rkanet18_fpn_overfit-120e_coco'


@pytest.fixture
def coco(tmp_path) -> Path:
    """A data root with train2017, val2017 and annotations of a small real COCO, the latter a copy to write beside."""
    source = Path(os.environ.get('RKAN_MM_COCO_MINI', ROOT.parent / 'shared/data/coco-mini'))
    if not source.is_dir():
        pytest.skip(f'needs real COCO photographs in {source} (or RKAN_MM_COCO_MINI)')
    root = tmp_path / 'coco'
    (root / 'annotations').mkdir(parents=True)
    for split in ('train', 'val'):
        (root / f'{split}2017').symlink_to(source / f'{split}2017')
        subset_coco(source / f'annotations/instances_{split}2017.json', root / f'annotations/{split}.json', 4)
    subset_coco(source / 'annotations/instances_train2017.json', root / 'annotations/overfit.json', 8, max_instances=10)
    return root


def test_photographs_train_resume_and_give_all_figures(coco, tmp_path, capsys):
    argv = [str(PATHS[OVERFIT]), '--work-dir', str(tmp_path / 'work'), '--cfg-options',
            f'data_root={coco}', 'train_cfg.val_interval=1', 'model.test_cfg.rcnn.score_thr=0.0',
            'default_hooks.checkpoint.interval=1',
            'train_dataloader.dataset.ann_file=annotations/train.json', 'train_dataloader.batch_size=2',
            'val_dataloader.dataset.ann_file=annotations/val.json', 'val_dataloader.dataset.data_prefix.img=val2017/',
            f'val_evaluator.ann_file={coco}/annotations/val.json']
    runner.train([*argv, 'train_cfg.max_epochs=1'])
    resumed = runner.train([*argv[:3], '--resume', *argv[3:], 'train_cfg.max_epochs=2'])
    assert (resumed.epoch, resumed.iter) == (2, 4)
    assert len(re.findall(r'Average (?:Precision|Recall) .* = -?\d\.\d+', capsys.readouterr().out)) == 48


@pytest.mark.slow
def test_learns_eight_photographs_by_heart(coco, tmp_path):
    trained = runner.train([str(PATHS[OVERFIT]), '--work-dir', str(tmp_path / 'work'),
                            '--cfg-options', f'data_root={coco}', 'randomness.seed=0'])
    metrics = trained.val_loop.run()
    assert metrics['coco/bbox_mAP_50'] >= 0.30
    assert metrics['coco/segm_mAP_50'] >= 0.25


@pytest.mark.slow
def test_the_demo_learns_the_shapes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    metrics = demo.main(['--config', str(ROOT / 'configs/mask-rcnn_rkanet18_fpn_shapes.py')])
    assert metrics['coco/bbox_mAP_50'] >= 0.70
    assert metrics['coco/segm_mAP_50'] >= 0.70
    assert (tmp_path / 'work_dirs/mask-rcnn_rkanet18_fpn_shapes/predictions.png').is_file()
