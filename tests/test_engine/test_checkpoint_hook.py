"""Checkpoints on a toy model: whole at every moment, removed last, exact to resume from."""

import contextlib
import errno
import os
import random
import stat

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from mmengine.runner import Runner
from torch import nn
from torch.testing import assert_close
from torch.utils.data import Dataset

from rkan_mm.apis.defaults import make_resumable
from rkan_mm.apis.resume import is_whole, newest_whole
from rkan_mm.engine import AtomicBackend, ResumableCheckpointHook, RunError, allow_mmengine_globals
from rkan_mm.engine.resume_state import random_state, set_random_state


@DATASETS.register_module()
class ResumeNoisy(Dataset):
    """Samples that depend on every generator of random numbers."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return dict(x=torch.tensor([index + random.random(), np.random.rand(), torch.rand(()).item()]))


@MODELS.register_module()
class ResumeToy(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x, mode='tensor'):
        loss = (self.linear(torch.stack(x)) + torch.rand(())).square().mean()
        return dict(loss=loss) if mode == 'loss' else [loss.item()]


def build(work_dir, loop=None, stop_at=None, resume=False, **settings):
    """A runner of the toy; it fails in front of iteration ``stop_at``."""
    cfg = Config(dict(dict(
        model=dict(type='ResumeToy'), work_dir=str(work_dir), train_cfg=loop or dict(by_epoch=True, max_epochs=4),
        train_dataloader=dict(batch_size=2, num_workers=0, dataset=dict(type='ResumeNoisy'),
                              sampler=dict(type='DefaultSampler', shuffle=True)),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)), default_scope='mmengine',
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)), log_level='WARNING',
        experiment_name=f'{work_dir.name}{stop_at}', resume=resume), **settings))
    make_resumable(cfg)
    if resume:
        cfg.load_from = newest_whole(cfg)
    runner = Runner.from_cfg(cfg)
    if stop_at is not None:
        step = runner.model.train_step

        def train_step(*args, **kwargs):
            if runner.iter == stop_at:
                raise KeyboardInterrupt
            return step(*args, **kwargs)

        runner.model.train_step = train_step
    return runner


LOOPS = dict(epochs=dict(by_epoch=True, max_epochs=4), iters=dict(type='IterBasedTrainLoop', max_iters=12))


@pytest.mark.parametrize('seed', [0, None])
@pytest.mark.parametrize(('loop', 'by_epoch', 'sampler'), [
    ('epochs', True, 'DefaultSampler'), ('epochs', False, 'DefaultSampler'),
    ('iters', False, 'DefaultSampler'), ('iters', False, 'InfiniteSampler')])
def test_a_resumed_run_ends_at_the_same_bits(tmp_path, monkeypatch, loop, by_epoch, sampler, seed):
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda seconds: None)
    settings = dict(randomness=dict(seed=seed), default_hooks=dict(
        checkpoint=dict(type='CheckpointHook', interval=1 if by_epoch else 2, by_epoch=by_epoch)))
    settings['train_dataloader'] = dict(batch_size=2, num_workers=0, dataset=dict(type='ResumeNoisy'),
                                        sampler=dict(type=sampler, shuffle=True))

    def run(name, stop_at=None, **changes):
        runner = build(tmp_path / name, LOOPS[loop], stop_at, **{**settings, **changes})
        with pytest.raises(KeyboardInterrupt) if stop_at else contextlib.nullcontext():
            runner.train()
        return runner

    first = run('broken', stop_at=8)
    resumed = run('broken', resume=True)
    through = run('through', randomness=dict(seed=first.seed))
    assert resumed.iter == through.iter == 12
    assert_close(resumed.model.state_dict(), through.model.state_dict(), rtol=0, atol=0)


def test_the_generators_come_back():
    state = random_state()
    first = random.random(), np.random.rand(), torch.rand(())
    set_random_state(state)
    assert (random.random(), np.random.rand(), torch.rand(())) == first


def test_another_number_of_batches_starts_the_epoch_again(tmp_path):
    hooks = dict(checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=False))
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / 'a', stop_at=5, default_hooks=hooks).train()
    loader = dict(batch_size=3, num_workers=0, dataset=dict(type='ResumeNoisy'), sampler=dict(type='DefaultSampler'))
    resumed = build(tmp_path / 'a', resume=True, default_hooks=hooks, train_dataloader=loader)
    resumed.train()
    assert resumed.iter == 4 + 3 * 2  # of the 4 before one was in the second epoch, which starts again


@METRICS.register_module()
class ResumeScore(BaseMetric):
    """The same after every validation, so that the first is the best."""

    def process(self, data_batch, data_samples):
        self.results += [1.0] * len(data_samples)

    def compute_metrics(self, results):
        return dict(score=1.0)


@HOOKS.register_module()
class SaveByItself(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 4:
            runner.save_checkpoint(runner.work_dir, 'own.pth', by_epoch=False)


def validated(work_dir, interval, by_epoch, **settings):
    checkpoint = dict(type='CheckpointHook', interval=interval, by_epoch=by_epoch, save_best='score', rule='greater')
    return build(  # runners of one name in one second would share what is best
        work_dir, experiment_name='_'.join(work_dir.parts[-2:]), default_hooks=dict(checkpoint=checkpoint),
        randomness=dict(seed=0), val_cfg=dict(),
        val_dataloader=dict(batch_size=2, num_workers=0, dataset=dict(type='ResumeNoisy'),
                            sampler=dict(type='DefaultSampler', shuffle=False)),
        val_evaluator=dict(type='ResumeScore'), optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)), **settings)


@pytest.mark.parametrize(('interval', 'by_epoch', 'loop'), [
    (2, False, 'epochs'), (1, True, 'epochs'), (3, True, 'epochs'), (2, False, 'iters')])
def test_the_best_checkpoint_is_resumed_at_its_own_place(tmp_path, monkeypatch, interval, by_epoch, loop):
    """Though it is saved without a word, and the one before was of another place in the epoch."""
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda seconds: None)
    loop = LOOPS[loop] if loop == 'epochs' else {**LOOPS[loop], 'val_interval': 3}
    through = validated(tmp_path / 'a', interval, by_epoch, loop=loop)
    through.train()
    [best] = tmp_path.glob('a/best_score_*.pth')
    resumed = validated(tmp_path / 'b', interval, by_epoch, loop=loop)
    resumed.resume(str(best))
    assert resumed.iter == 3
    calls = []
    monkeypatch.setattr(ResumeScore, 'compute_metrics', lambda self, results: calls.append(resumed.iter) or dict(
        score=1.0))
    resumed.train()
    assert (resumed.iter, calls) == (12, [6, 9, 12])
    assert_close(resumed.model.state_dict(), through.model.state_dict(), rtol=0, atol=0)


def test_a_checkpoint_of_another_saver_is_not_resumed_by_the_one_before(tmp_path, monkeypatch):
    validated(tmp_path / 'a', 2, False, custom_hooks=[dict(type='SaveByItself')]).train()
    resumed, warnings = validated(tmp_path / 'b', 2, False), []
    resumed.resume(str(tmp_path / 'a/own.pth'))
    monkeypatch.setattr(resumed.logger, 'warning', warnings.append)
    resumed.train()
    assert resumed.iter == 5 + 3 * 3  # its epoch, the second, starts again
    assert 'The checkpoint is of iteration 5, and what it holds of random numbers and of the place in ' in warnings[0]
    assert 'is of iteration 4: the run goes on with other random numbers, and by epochs from ' in warnings[0]


KEEP_ONE = dict(checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1))


def test_old_checkpoints_go_when_the_new_one_is_there(tmp_path, monkeypatch):
    seen = []
    put = AtomicBackend.put

    def watch(self, obj, path):
        seen.append(sorted(path.name for path in tmp_path.glob('*/epoch_*.pth')))
        put(self, obj, path)

    monkeypatch.setattr(AtomicBackend, 'put', watch)
    build(tmp_path / 'a', default_hooks=KEEP_ONE).train()
    assert seen[::2] == [[], ['epoch_1.pth'], ['epoch_2.pth'], ['epoch_3.pth']]
    assert [path.name for path in tmp_path.glob('a/*.pth')] == ['epoch_4.pth']


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    runner = build(tmp_path / 'a', default_hooks=KEEP_ONE)
    fsync = os.fsync

    def full(number):
        if list(tmp_path.glob('a/epoch_2.*.pth.tmp')):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(number)

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(RunError, match=r'could not be written: .*No space left on device.*epoch_1.pth is whole and '
                                       'kept; make room, then go on with --resume'):
        runner.train()
    assert [path.name for path in tmp_path.glob('a/*.pth*')] == ['epoch_1.pth']
    monkeypatch.undo()
    resumed = build(tmp_path / 'a', resume=True)
    resumed.train()
    assert resumed.epoch == 4


def test_best_checkpoints_are_replaced_last(tmp_path):
    runner = build(tmp_path / 'a')
    hook = next(hook for hook in runner.hooks if isinstance(hook, ResumableCheckpointHook))
    hook.file_backend, hook.last_ckpt = AtomicBackend(), str(tmp_path / 'new')
    for name in ('old', 'new'):
        (tmp_path / name).touch()
    with hook._removing_last(runner):
        hook.file_backend.remove(str(tmp_path / 'old'))
        hook.file_backend.remove(str(tmp_path / 'new'))  # the same name again
        hook.file_backend.remove(str(tmp_path / 'gone'))  # another training in this folder was faster
        assert (tmp_path / 'old').exists()
    assert not (tmp_path / 'old').exists()
    assert (tmp_path / 'new').exists()


@pytest.mark.parametrize('damage', [
    lambda data: data[:len(data) // 2], lambda data: b'', lambda data: data[:-1],
    lambda data: data[:len(data) // 2] + bytes(64) + data[len(data) // 2 + 64:],
], ids=['half', 'empty', 'a byte short', 'zeros within'])
def test_a_torn_checkpoint_is_passed_over_by_name(tmp_path, monkeypatch, damage):
    build(tmp_path / 'a').train()
    last, before = tmp_path / 'a/epoch_4.pth', tmp_path / 'a/epoch_3.pth'
    cfg = Config(dict(work_dir=str(tmp_path / 'a')))
    assert newest_whole(cfg) == str(last)
    last.write_bytes(damage(last.read_bytes()))
    assert not is_whole(last)
    warnings = []
    monkeypatch.setattr(MMLogger.get_current_instance(), 'warning', warnings.append)
    assert newest_whole(cfg) == str(before)
    assert 'epoch_4.pth is torn' in warnings[0]
    (tmp_path / 'a/last_checkpoint').write_text('')  # torn itself
    assert newest_whole(cfg) == str(before)
    assert newest_whole(Config(dict(work_dir=str(tmp_path / 'none')))) is None
    (tmp_path / 'a/last_checkpoint').write_text('s3://bucket/a/epoch_9.pth')  # by out_dir of the checkpoint hook
    assert newest_whole(cfg) == 's3://bucket/a/epoch_9.pth'


def test_a_run_that_was_gone_on_with_under_an_earlier_clock(tmp_path):
    """In a checkpoint stands the time of the zone of its machine."""
    build(tmp_path / 'a').train()
    cfg, last = Config(dict(work_dir=str(tmp_path / 'a'))), tmp_path / 'a/last_checkpoint'

    allow_mmengine_globals()

    def saved(epoch, time):
        path = tmp_path / f'a/epoch_{epoch}.pth'
        checkpoint = torch.load(path, weights_only=True)
        checkpoint['meta']['time'] = time
        torch.save(checkpoint, path)

    for epoch, time in {1: '20261127_100000', 2: '20261127_110000', 3: '20261127_040000', 4: '20261127_050000'}.items():
        saved(epoch, time)
    assert newest_whole(cfg) == str(tmp_path / 'a/epoch_4.pth')
    last.write_text(str(tmp_path / 'a/epoch_3.pth'))  # stopped before it named the next one
    assert newest_whole(cfg) == str(tmp_path / 'a/epoch_4.pth')
    last.write_text(str(tmp_path / 'a/epoch_1.pth'))
    saved(1, '20261128_100000')  # of a training that was begun anew in a work dir with another one
    assert newest_whole(cfg) == str(tmp_path / 'a/epoch_1.pth')


def test_classes_of_the_user_stay(tmp_path):
    cfg = Config(dict(train_cfg=dict(type='MyLoop'), default_hooks=dict(checkpoint=dict(type='MyCheckpointHook')),
                      custom_hooks=[dict(type='MyHook')]))
    make_resumable(cfg)
    assert cfg.train_cfg.type == 'MyLoop'
    assert cfg.default_hooks.checkpoint.type == 'MyCheckpointHook'
    assert [hook['type'] for hook in cfg.custom_hooks] == ['MyHook', 'rkan_mm.LossCheckHook']


def test_a_bad_loss_keeps_the_checkpoint_before(tmp_path):
    runner = build(tmp_path / 'a')
    step = runner.model.train_step

    def train_step(*args, **kwargs):
        if runner.iter == 8:  # the last of an epoch, before a checkpoint
            runner.model.linear.weight.data[0, 0] = float('nan')
        return step(*args, **kwargs)

    runner.model.train_step = train_step
    with pytest.raises(RunError, match=r'Iteration 9: loss = nan. .* Nothing was saved since .*epoch_2.pth'):
        runner.train()
    assert sorted(path.name for path in tmp_path.glob('a/*.pth')) == ['epoch_1.pth', 'epoch_2.pth']
    assert all(torch.isfinite(value).all() for value in torch.load(
        tmp_path / 'a/epoch_2.pth', weights_only=True)['state_dict'].values())


def test_a_disk_that_writes_no_folders_on_demand(tmp_path, monkeypatch):
    """As those of Windows over the network: mmengine's own hook saves there."""
    fsync = os.fsync

    def refuse(number):
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(number)

    monkeypatch.setattr(os, 'fsync', refuse)
    AtomicBackend().put(b'weights', tmp_path / 'epoch_1.pth')
    assert (tmp_path / 'epoch_1.pth').read_bytes() == b'weights'
    assert [path.name for path in tmp_path.iterdir()] == ['epoch_1.pth']


@pytest.mark.parametrize('begins', [False, True])
def test_two_processes_that_write_one_checkpoint(tmp_path, monkeypatch, begins):
    replace, path = os.replace, tmp_path / 'epoch_1.pth'

    def meanwhile(part, place):
        monkeypatch.setattr(os, 'replace', replace)
        AtomicBackend().put(b'other', path)
        if begins:
            part.unlink()  # the other does so when it begins
        replace(part, place)

    monkeypatch.setattr(os, 'replace', meanwhile)
    AtomicBackend().put(b'mine', path)
    assert path.read_bytes() == b'mine'
    assert [each.name for each in tmp_path.iterdir()] == ['epoch_1.pth']


@pytest.mark.parametrize('template', ['epoch_{:03d}.pth', 'e[poch]_{}.pth', '{}.pth'])
def test_checkpoints_by_names_of_the_users_own(tmp_path, template):
    default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, filename_tmpl=template))
    build(tmp_path / 'a', default_hooks=default_hooks).train()
    (tmp_path / 'a/last_checkpoint').unlink()
    cfg = Config(dict(work_dir=str(tmp_path / 'a'), default_hooks=default_hooks))
    assert newest_whole(cfg) == str(tmp_path / 'a' / template.format(4))
