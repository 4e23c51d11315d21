"""What a run was made of."""

import copy
import platform
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset, RepeatDataset
from mmengine.hooks import LoggerHook
from mmengine.logging import MessageHub
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import get_priority

from rkan_mm.datasets.shapes import make_shapes
from rkan_mm.engine import provenance
from rkan_mm.engine.provenance import commit, fingerprint, processor
from rkan_mm.engine.summary import PEAKS, RunSummaryHook, _is_better_low


def shapes(root):
    init_default_scope('mmdet')
    return DATASETS.build(dict(
        type='CocoDataset', data_root=str(root), ann_file='annotations/train.json', data_prefix=dict(img='train/'),
        metainfo=dict(classes=('disc', 'rectangle', 'triangle', 'star', 'ring')), pipeline=[]))


@pytest.fixture
def root(tmp_path):
    return make_shapes(tmp_path / 'shapes', num_train=6, num_val=1)


def test_of_the_data_and_not_of_where_it_lies(root, tmp_path):
    first = fingerprint(shapes(root))
    assert len(first) == 12
    assert fingerprint(shapes(shutil.copytree(root, tmp_path / 'elsewhere'))) == first
    assert fingerprint(RepeatDataset(shapes(root), 1)) == first


def test_every_change_shows(root, tmp_path):
    prints = [fingerprint(shapes(root)), fingerprint(shapes(make_shapes(tmp_path / 'more', 7, 1))),
              fingerprint(shapes(make_shapes(tmp_path / 'other', 6, 1, seed=1)))]
    picture = root / 'train/000002.png'
    picture.write_bytes((root / 'train/000003.png').read_bytes())
    prints.append(fingerprint(shapes(root)))
    annotations = root / 'annotations/train.json'
    annotations.write_text(annotations.read_text().replace('"category_id": 1,', '"category_id": 2,', 1))
    prints.append(fingerprint(shapes(root)))
    assert len(set(prints)) == len(prints)


class Labelled(BaseDataset):
    def load_data_list(self):
        return copy.deepcopy(self._metainfo['entries'])


def labelled(entries):
    return Labelled(metainfo=dict(entries=entries), pipeline=[])


def test_pictures_in_memory_and_their_labels():
    entries = [dict(img=np.full((4, 4), i, np.uint8), gt_label=np.int64(i)) for i in range(3)]
    first = fingerprint(labelled(entries))
    assert fingerprint(labelled([{**entry, 'gt_label': int(entry['gt_label'])} for entry in entries])) == first
    entries[1]['img'][0, 0] = 9
    second = fingerprint(labelled(entries))
    entries[1]['gt_label'] = np.int64(7)
    assert len({first, second, fingerprint(labelled(entries))}) == 3


def test_of_a_large_set_evenly_spaced_entries(monkeypatch):
    monkeypatch.setattr(provenance, 'SAMPLED', 10)
    entries = [dict(gt_label=i) for i in range(100)]
    first = fingerprint(labelled(entries))
    assert first != fingerprint(labelled(entries[1:]))
    entries[99]['gt_label'] = 0  # the first and the last are always among them
    assert first != fingerprint(labelled(entries))


def test_what_has_no_entries_has_none():
    assert fingerprint([1, 2]) is None


def test_the_commit_is_that_of_the_checkout(tmp_path, monkeypatch):
    def git(*args):
        subprocess.run(['git', '-C', str(tmp_path), '-c', 'user.name=a', '-c', 'user.email=a@b', *args], check=True,
                       capture_output=True)

    module = tmp_path / 'provenance.py'
    module.write_text('a')
    monkeypatch.setattr(provenance, '__file__', str(module))
    assert commit() is None  # no checkout
    monkeypatch.setenv('RKAN_MM_REVISION', 'abcdef123456')
    assert commit() == 'abcdef123456'  # of a copy
    monkeypatch.delenv('RKAN_MM_REVISION')
    git('init')
    assert commit() is None  # a checkout of something else
    git('add', '.')
    git('commit', '-m', 'a')
    monkeypatch.setenv('RKAN_MM_REVISION', 'abcdef123456')
    clean = commit()
    assert len(clean) == 12  # the checkout knows better than the variable
    assert clean != 'abcdef123456'
    (tmp_path / 'results.csv').write_text('row')
    git('add', '.')
    assert commit() == clean  # a record, which a table writes between its runs
    module.write_text('b')
    assert commit() == f'{clean}-dirty'


@pytest.mark.parametrize(('cpuinfo', 'elsewhere', 'name'), [
    ('processor\t: 0\nmodel name\t: AMD EPYC\nmodel\t: 17\nmodel name\t: AMD EPYC\n', 'x86_64', 'AMD EPYC'),
    ('processor\t: 0\nBogoMIPS\t: 50\n', 'arm', 'arm'), (None, 'arm', 'arm'), ('', '', 'CPU')])
def test_the_processor_is_named(cpuinfo, elsewhere, name, monkeypatch):
    def read(path):
        assert str(path) == '/proc/cpuinfo'
        if cpuinfo is None:
            raise FileNotFoundError(path)
        return cpuinfo

    monkeypatch.setattr(provenance.Path, 'read_text', read)
    monkeypatch.setattr(platform, 'processor', lambda: elsewhere)
    assert processor() == name


@pytest.mark.parametrize(('name', 'low'), [('loss', True), ('crowd_human/mMR', True), ('regression/l1_distance', True),
                                           ('accuracy/top1', False), ('coco/bbox_mAP', False)])
def test_what_is_best_when_it_is_low(name, low):
    assert _is_better_low(name, []) == low


def test_a_checkpoint_that_another_hook_saves_before_the_training():
    checkpoint = dict(message_hub=dict(runtime_info={}))
    RunSummaryHook().before_save_checkpoint(SimpleNamespace(message_hub=MessageHub('before')), checkpoint)
    assert checkpoint['message_hub']['runtime_info'] == {PEAKS: {}}


def test_a_peak_of_the_gpu_stays_when_the_log_begins_its_own_count(monkeypatch):
    """The log of mmengine resets PyTorch's count with each line that it writes."""
    peak = [3 * 2**20]
    for name in ('is_available', 'is_initialized'):
        monkeypatch.setattr(torch.cuda, name, lambda: True)
    monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda: peak[0])
    hook, log = RunSummaryHook(), LoggerHook()
    for each in sorted((log, hook), key=lambda each: get_priority(each.priority)):
        if each is hook:
            each.after_train_iter(None, 0)
        else:
            peak[0] = 2**20
    assert hook._memory() == 3
    peak[0] = 5 * 2**20
    hook.after_val_iter(None, 0)
    assert hook._memory() == 5
