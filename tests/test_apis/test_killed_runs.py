"""A run that is killed at any moment resumes from a whole checkpoint and ends at the same bits as one that was not."""

import random

import pytest
from killing import differing, run

from rkan_mm.apis.resume import is_whole
from rkan_mm.datasets.shapes import make_shapes

SHAPES = 'configs/mask-rcnn_rkanet18_fpn_shapes.py'
TINY = """
_base_ = '{base}'
model = dict(backbone=dict(backbone=dict(base_channels=4, stem_channels=4)), neck=dict(in_channels=[4, 8, 16, 32]),
             test_cfg=dict(rcnn=dict(score_thr=0.3)))
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(optimizer=dict(_delete_=True, type='SGD', lr=0.01, momentum=0.9))
custom_hooks = [dict(type='EMAHook')]
"""
EPOCHS = """
train_cfg = dict(max_epochs=2, val_interval=1)
default_hooks = dict(checkpoint=dict({checkpoint}))
"""
RUNS = dict(
    by_epoch=EPOCHS.format(checkpoint='interval=1'),
    within_epochs=EPOCHS.format(checkpoint='interval=3, by_epoch=False'),
    iterations="""
train_cfg = dict(_delete_=True, by_epoch=False, max_iters=8, val_interval=3)
train_dataloader = dict(sampler=dict(type='InfiniteSampler'))
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=6)]
default_hooks = dict(checkpoint=dict(interval=2, by_epoch=False))
log_processor = dict(by_epoch=False)
""")


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'shapes', num_train=8, num_val=2, size=64)


@pytest.fixture
def command(root, shapes, tmp_path):
    """Arguments of tools/train.py, by the name of the run and of its folder."""
    def of(kind, folder, *flags):
        config = tmp_path / f'{kind}.py'
        config.write_text(TINY.format(base=root / SHAPES) + RUNS[kind])
        return [str(config), '--work-dir', str(tmp_path / folder), *flags, '--cfg-options', f'data_root={shapes}']
    return of


def final(folder):
    return folder / (folder / 'last_checkpoint').read_text().rpartition('/')[2]


@pytest.mark.parametrize('kind', ['within_epochs', *(pytest.param(kind, marks=pytest.mark.slow)
                                                    for kind in ('by_epoch', 'iterations'))])
def test_killed_runs_end_at_the_same_bits(command, tmp_path, kind):
    code, seconds = run(command(kind, 'through'))
    assert code == 0
    broken, folder = command(kind, 'broken', '--resume'), tmp_path / 'broken'
    assert run(broken, kill_at_write=4)[0] == -9  # while a checkpoint is written
    assert list(folder.glob('*.pth.tmp'))
    assert all(is_whole(path) for path in folder.glob('*.pth'))
    run(broken, kill_after=random.uniform(0, seconds))
    assert run(broken)[0] == 0
    assert_same(folder, tmp_path / 'through')


@pytest.mark.slow
@pytest.mark.parametrize('kind', RUNS)
def test_ten_kills(command, tmp_path, kind):
    RUNS[f'long_{kind}'] = RUNS[kind].replace('max_epochs=2', 'max_epochs=14').replace('max_iters=8', 'max_iters=56')
    through = command(f'long_{kind}', 'through')
    code, seconds = run(through)
    assert code == 0
    broken, folder, moments = command(f'long_{kind}', 'broken', '--resume'), tmp_path / 'broken', []
    for kill in range(10):
        moment = dict(kill_at_write=random.randint(0, 9)) if kill % 2 else dict(kill_after=random.uniform(0, 7))
        moments.append(moment)
        assert run(broken, **moment)[0] == -9, moments
        assert all(is_whole(path) for path in folder.glob('*.pth'))
    assert run(broken)[0] == 0
    print(f'{kind}: uninterrupted {seconds:.0f} s; killed at {moments}')
    assert_same(folder, tmp_path / 'through')


def assert_same(folder, through):
    assert final(folder).name == final(through).name
    assert not differing(final(folder), final(through))
    assert {path.name for path in folder.glob('*.pth*')} >= {path.name for path in through.glob('*.pth')}
    assert not list(folder.glob('*.pth.tmp'))
