"""Two processes on the CPU learn what one does; their checkpoints are each other's; none hangs when one dies."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from killing import run, run_ranks
from torch.testing import assert_close

from rkan_mm.datasets.shapes import make_shapes
from rkan_mm.engine import allow_mmengine_globals

# FCOS, whose losses are divided by means over all ranks. Batch norms rest, since torch's SyncBN needs a GPU
CONFIG = """
_base_ = {bases}
custom_imports = dict(imports=['rkan_mm', 'recording'], allow_failed_imports=False)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]
model = dict(
    _delete_=True, type='FCOS', data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32),
    backbone=dict(type='rkan_mm.RKANet', block=dict(type='RKANBlock', norm_cfg=dict(type='GN', num_groups=4)),
                  backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8, norm_eval=True)),
    neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=8, start_level=1, num_outs=3),
    bbox_head=dict(type='FCOSHead', num_classes=5, in_channels=8, feat_channels=8, strides=[8, 16, 32],
                   regress_ranges=((-1, 32), (32, 64), (64, 100000)), norm_cfg=dict(type='GN', num_groups=4)))
train_cfg = dict(_delete_=True, by_epoch=False, max_iters=6, val_interval=100)
train_dataloader = dict(batch_size={batch}, sampler=dict(type='InfiniteSampler'),
                        dataset=dict(pipeline=train_pipeline))
val_cfg = val_dataloader = val_evaluator = None
param_scheduler = [dict(type='LinearLR', start_factor=0.5, by_epoch=False, begin=0, end=4)]
optim_wrapper = dict(optimizer=dict(_delete_=True, type='SGD', lr=0.02, momentum=0.9))
default_hooks = dict(checkpoint=dict(interval=3, by_epoch=False, max_keep_ckpts=-1))
log_processor = dict(by_epoch=False)
custom_hooks = [dict(type='RecordLosses'){hooks}]
"""

# FSDP refuses FCOS, whose scales are parameters without a dimension. YOLOX divides by means over all ranks as well
YOLOX = """
model.update(
    type='YOLOX', train_cfg=dict(assigner=dict(type='SimOTAAssigner', center_radius=2.5)),
    bbox_head=dict(type='YOLOXHead', num_classes=5, in_channels=8, feat_channels=8, strides=[8, 16, 32],
                   norm_cfg=dict(type='GN', num_groups=4)))
"""

pytestmark = pytest.mark.slow


@pytest.fixture
def command(root, tmp_path, monkeypatch):
    data = make_shapes(tmp_path / 'shapes', num_train=8, num_val=1, size=64)
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(root), str(root / 'tests')]))

    def of(name, batch, *flags, hooks='', base=(), more=''):
        config = tmp_path / f'{name}.py'
        bases = [str(root / 'configs' / each) for each in ('mask-rcnn_rkanet18_fpn_shapes.py', *base)]
        config.write_text(CONFIG.format(bases=bases, batch=batch, hooks=hooks) + more)
        return [str(config), '--work-dir', str(tmp_path / name), *flags, '--cfg-options', f'data_root={data}']
    return of


def losses(folder):
    """Mean over the ranks, by iteration."""
    ranks = [json.loads(path.read_text()) for path in sorted(folder.glob('losses_*.json'))]
    return {key: sum(rank[key] for rank in ranks) / len(ranks) for key in ranks[0]}


def test_two_processes_learn_what_one_does_and_resume_each_other(command, tmp_path):
    assert run(command('one', 4))[0] == 0
    assert run_ranks(command('two', 2)) == [0, 0]
    one, two = losses(tmp_path / 'one'), losses(tmp_path / 'two')
    assert len(one) == 6
    assert one['0'] > one['5']
    assert_close(two, one, rtol=1e-5, atol=1e-5)

    assert run(command('two_then_one', 4, '--resume', str(tmp_path / 'two/iter_3.pth')))[0] == 0
    assert run_ranks(command('one_then_two', 2, '--resume', str(tmp_path / 'one/iter_3.pth'))) == [0, 0]
    rest = {key: one[key] for key in '345'}
    assert_close(losses(tmp_path / 'two_then_one'), rest, rtol=1e-5, atol=1e-5)
    assert_close(losses(tmp_path / 'one_then_two'), rest, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('rank', [0, 1])
def test_a_rank_that_dies_ends_the_job(command, root, tmp_path, rank):
    config, *arguments = command('dies', 2, hooks=f", dict(type='Die', rank={rank}, at=4)")
    environment = {**os.environ, 'PATH': f'{os.path.dirname(sys.executable)}{os.pathsep}{os.environ["PATH"]}',
                   'PORT': str(29600 + rank), 'OMP_NUM_THREADS': '1'}
    start = time.monotonic()
    done = subprocess.run([str(root / 'tools/dist_train.sh'), config, '2', *arguments], env=environment, timeout=300,
                          capture_output=True, text=True)
    assert done.returncode != 0
    assert 'SIGKILL' in done.stderr
    assert time.monotonic() - start < 200
    assert (tmp_path / 'dies/iter_3.pth').is_file()


def test_sharded_processes_learn_what_one_does_and_resume(command, tmp_path):
    fsdp = dict(base=['_base_/fsdp.py'], more=YOLOX)
    assert run(command('one', 4, more=YOLOX))[0] == 0
    assert run_ranks(command('sharded', 2, hooks=", dict(type='RecordShards')", **fsdp)) == [0, 0]
    one = losses(tmp_path / 'one')
    assert_close(losses(tmp_path / 'sharded'), one, rtol=1e-5, atol=1e-5)
    total = json.loads((tmp_path / 'one/summary.json').read_text())['parameters']
    assert json.loads((tmp_path / 'sharded/summary.json').read_text())['parameters'] == total
    for kept in ('weights', 'momenta'):
        ranks = [int((tmp_path / f'sharded/{kept}_{rank}.json').read_text()) for rank in (0, 1)]
        assert sum(ranks) == total
        assert max(ranks) < 0.6 * total

    rest = {key: one[key] for key in '345'}
    checkpoint = str(tmp_path / 'sharded/iter_3.pth')
    assert run_ranks(command('sharded_twice', 2, '--resume', checkpoint, **fsdp)) == [0, 0]
    assert_close(losses(tmp_path / 'sharded_twice'), rest, rtol=1e-5, atol=1e-5)
    assert 'entries of the model are loaded' in next((tmp_path / 'sharded_twice').glob('*/*.log')).read_text()
    allow_mmengine_globals()
    a, b = (torch.load(tmp_path / f'{name}/iter_6.pth', weights_only=True)['state_dict'] for name in ('one', 'sharded'))
    assert_close(b, a, rtol=1e-4, atol=1e-5)


def test_sharded_mask_rcnn_is_validated(root, tmp_path, monkeypatch):
    data = make_shapes(tmp_path / 'shapes', num_train=24, num_val=2, size=64)
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(root), str(root / 'tests')]))
    bases = [str(root / 'configs' / each) for each in ('mask-rcnn_rkanet18_fpn_shapes.py', '_base_/fsdp.py')]
    (tmp_path / 'mask.py').write_text(f"""
_base_ = {bases}
model = dict(backbone=dict(backbone=dict(base_channels=8, stem_channels=8)), neck=dict(in_channels=[8, 16, 32, 64]),
             test_cfg=dict(rcnn=dict(score_thr=0)))
train_dataloader = dict(batch_size=2)
train_cfg = dict(max_epochs=1, val_interval=1)
""")
    command = [str(tmp_path / 'mask.py'), '--work-dir', str(tmp_path / 'out'), '--cfg-options', f'data_root={data}']
    assert run_ranks(command) == [0, 0]
    summary = json.loads((tmp_path / 'out/summary.json').read_text())
    assert (summary['processes'], summary['iterations']) == (2, 6)
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= set(summary['metrics'])
    assert run(command)[0] == 0  # one process keeps the model whole
    assert json.loads((tmp_path / 'out/summary.json').read_text())['processes'] == 1
