"""CachedDataset and BalancedSubset over a small data set of mmpretrain."""

import pickle

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from mnist import write_mnist

import rkan_mm.datasets  # noqa: F401  # registers what is tested


@pytest.fixture
def plain(tmp_path):
    init_default_scope('mmpretrain')
    write_mnist(tmp_path)
    return dict(type='MNIST', data_root=str(tmp_path), split='train', pipeline=[dict(type='PackInputs')])


def test_gives_what_the_data_set_gives(plain):
    dataset, cached = DATASETS.build(plain), DATASETS.build(dict(type='CachedDataset', dataset=plain))
    assert len(cached) == len(dataset) == 40
    assert cached.metainfo == dataset.metainfo
    for i in (0, 17, 39):
        assert torch.equal(cached[i]['inputs'], dataset[i]['inputs'])
        assert torch.equal(cached[i]['data_samples'].gt_label, dataset[i]['data_samples'].gt_label)
        assert cached.get_data_info(i)['gt_label'] == dataset.get_data_info(i)['gt_label']
    assert len(pickle.loads(pickle.dumps(cached))) == 40


@pytest.mark.parametrize('num_workers', [0, 1])
def test_a_batch_at_once(plain, num_workers):
    loader = Runner.build_dataloader(dict(
        batch_size=16, num_workers=num_workers, dataset=dict(type='CachedDataset', dataset=plain),
        sampler=dict(type='DefaultSampler', shuffle=True), collate_fn=dict(type='keep_batch')), seed=0)
    seen = []
    for batch in loader:
        assert batch['inputs'].shape[1:] == (1, 6, 5)
        values = batch['inputs'][:, 0, 0, 0].tolist()
        assert [int(sample.gt_label) for sample in batch['data_samples']] == [value % 3 for value in values]
        seen += values
    assert sorted(seen) == list(range(40))
    assert seen != sorted(seen)


def test_the_usual_collate_works_too(plain):
    loader = Runner.build_dataloader(dict(
        batch_size=16, num_workers=0, dataset=dict(type='CachedDataset', dataset=plain),
        sampler=dict(type='DefaultSampler', shuffle=False), collate_fn=dict(type='default_collate')))
    assert next(iter(loader))['inputs'].shape == (16, 1, 6, 5)


def test_what_training_adds_to_a_sample_does_not_stay(plain):
    cached = DATASETS.build(dict(type='CachedDataset', dataset=plain))
    batch = cached.__getitems__([0, 1]).batch
    batch['data_samples'][0].set_gt_score(torch.rand(3))
    assert 'gt_score' in batch['data_samples'][0]
    assert 'gt_score' not in cached.__getitems__([0]).batch['data_samples'][0]
    assert 'gt_score' not in cached[0]['data_samples']


def test_errors(plain, monkeypatch):
    loader = Runner.build_dataloader(dict(
        batch_size=4, num_workers=0, dataset=plain, sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='keep_batch')))
    with pytest.raises(TypeError, match='keep_batch: needs a CachedDataset as the outermost data set, got list of d'):
        next(iter(loader))
    monkeypatch.setattr(type(loader.dataset), '__getitem__',
                        lambda self, i: dict(inputs=torch.zeros(1, i + 1, 2), data_samples=None))
    with pytest.raises(ValueError, match=r'pipeline of MNIST must give all images one shape, got \[\(1, 1, 2\), \(1'):
        DATASETS.build(dict(type='CachedDataset', dataset=plain))


def test_subset_is_balanced_and_disjoint(plain):
    parts = [DATASETS.build(dict(type='BalancedSubset', dataset=plain, per_class=5, offset=offset, seed=1))
             for offset in (0, 5)]
    values = []
    for part in parts:
        assert np.bincount(part.get_gt_labels()).tolist() == [5, 5, 5]
        values.append({int(part[i]['inputs'][0, 0, 0]) for i in range(len(part))})
    assert len(values[0] | values[1]) == 30
    other = DATASETS.build(dict(type='BalancedSubset', dataset=plain, per_class=5, seed=2))
    assert {int(other[i]['inputs'][0, 0, 0]) for i in range(15)} != values[0]


def test_subset_error(plain):
    with pytest.raises(ValueError, match=r'BalancedSubset: class 1 of MNIST has 13 images, fewer than .* = 4 \+ 10'):
        DATASETS.build(dict(type='BalancedSubset', dataset=plain, per_class=10, offset=4))


@pytest.mark.parametrize('step', [
    dict(type='Rotate', angle=45.0, prob=0.5, pad_val=200), dict(type='RandomCrop', crop_size=(6, 5), padding=2)])
def test_a_random_pipeline(plain, step):
    """Each picture would be flipped, or not, once for all epochs."""
    random = dict(plain, pipeline=[step, dict(type='PackInputs')])
    with pytest.raises(ValueError, match='pipeline of MNIST gives image [0-9]+ in another form each time, and only'):
        DATASETS.build(dict(type='CachedDataset', dataset=random))
