"""The config that a run leaves in its work dir, and what the tools make of it."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from small_runs import CLASSIFIER, write_run
from torch.utils.data import DataLoader

from rkan_mm.apis import runner
from rkan_mm.engine import RunSummaryHook
from rkan_mm.engine import summary as summary_module


@pytest.fixture
def trained(small_data, tmp_path, monkeypatch):
    """A classifier in a folder of its own, trained for one epoch."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_data / 'pictures', 'pictures')
    write_run(tmp_path, 'cls', CLASSIFIER)
    runner.train(['cls.py', '--work-dir', 'work'])
    return tmp_path / 'work'


def test_the_training_can_be_done_again(trained):
    runner.train(['cls.py', '--work-dir', 'work', '--channels-last', '--resume', '--cfg-options',
                  'train_cfg.max_epochs=2'])
    again = runner.train(['work/cls.py', '--work-dir', 'again', '--channels-last'])
    hooks = [type(hook).__name__ for hook in again.hooks]
    assert len(hooks) == len(set(hooks))
    first, summary = (json.loads((trained.parent / name / 'summary.json').read_text()) for name in ('work', 'again'))
    assert summary['iterations'] == 6
    assert summary['validated_after'] == first['validated_after'] == [1, 2]
    assert len(summary['metrics']['accuracy/top1']['curve']) == 2


def test_what_a_training_ran_on_is_not_what_collects_it(trained, monkeypatch):
    """As of a work dir that was copied from the machine where it was trained."""
    def summary():
        return json.loads((trained / 'summary.json').read_text())

    first = summary()
    assert first['devices'] == [f'1 x {summary_module._device()}']
    assert first['all_threads'] == [str(torch.get_num_threads())]
    monkeypatch.setattr(summary_module, '_device', lambda: 'another')
    monkeypatch.setattr(RunSummaryHook, '_memory', staticmethod(lambda: 7.0))
    runner.train(['cls.py', '--work-dir', 'work', '--resume'])  # nothing is left to train
    assert [summary()[name] for name in ('devices', 'all_threads')] == [first['devices'], first['all_threads']]
    assert 7 < summary()['peak_memory_mib'] <= first['peak_memory_mib']  # as it was when the checkpoint was saved
    runner.train(['cls.py', '--work-dir', 'work', '--resume', '--cfg-options', 'train_cfg.max_epochs=2'])
    assert summary()['devices'] == [*first['devices'], '1 x another']
    assert summary()['peak_memory_mib'] == 7
    monkeypatch.setattr(RunSummaryHook, '_memory', staticmethod(lambda: 5.0))  # of the last process alone
    runner.train(['cls.py', '--work-dir', 'work', '--resume', '--cfg-options', 'train_cfg.max_epochs=3'])
    assert summary()['peak_memory_mib'] == 7


@pytest.mark.parametrize(('before', 'seconds'), [(100, 20), (0, 5), (107, 5)])
def test_seconds_of_an_epoch_are_of_the_last_process(before, seconds):
    """100 batches on another machine, or of other sizes; then two epochs of five."""
    hook, times = RunSummaryHook(), [1.0] * 100 + [4.0] * 10
    hook._times_before = before
    runner = SimpleNamespace(epoch=3, train_loop=SimpleNamespace(dataloader=DataLoader(range(10), batch_size=2)))
    assert hook._seconds({'train/time': HistoryBuffer(times, [1] * 110)}, runner) == seconds


@pytest.mark.parametrize('flags', [[], ['--tta']])
def test_a_test_leaves_it_as_it_is(trained, flags):
    before = (trained / 'cls.py').read_text()
    assert runner.test(['work/cls.py', 'work/epoch_1.pth', *flags])
    assert (trained / 'cls.py').read_text() == before
    assert runner.test(['work/cls.py', 'work/epoch_1.pth', '--work-dir', 'elsewhere'])
    assert Config.fromfile('elsewhere/cls.py').load_from == 'work/epoch_1.pth'


def test_of_a_training_that_was_gone_on_with_and_whose_data_are_gone(trained):
    text = (trained / 'cls.py').read_text()
    assert 'resume = False' in text
    text = text.replace('resume = False', 'resume = True')
    (trained / 'cls.py').write_text(text + "train_dataloader['dataset']['data_root'] = 'gone'\n")
    with pytest.raises(runner.PreflightError, match='would leave out 2 of 6 images'):
        runner.test(['work/cls.py', 'work/epoch_1.pth', '--cfg-options', 'test_dataloader.batch_size=4',
                     'test_dataloader.drop_last=True'])
    assert runner.test(['work/cls.py', 'work/epoch_1.pth'])
