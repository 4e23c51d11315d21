"""Models that compare pictures with those of a gallery, which they take in at a validation."""

import inspect
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmpretrain.evaluation.metrics import retrieval
from mmpretrain.models import ImageToImageRetriever
from small_runs import CLASSIFIER
from torch import nn

from rkan_mm.preflight import PreflightError
from rkan_mm.preflight.metric_settings import check_numpy
from rkan_mm.preflight.trial import _as_before

RETRIEVER = """
model = dict(
    type='ImageToImageRetriever', image_encoder=[model['backbone'], model['neck']],
    head=dict(type='ArcFaceClsHead', num_classes=3, in_channels=32),
    prototype=dict(batch_size=2, num_workers=0, dataset=dict(train_dataloader['dataset']),
                   sampler=dict(type='DefaultSampler', shuffle=False), collate_fn=dict(type='default_collate')))
val_evaluator = test_evaluator = dict(type='RetrievalAveragePrecision', topk=3)
"""
HOOK = "custom_hooks = [dict(type='PrepareProtoBeforeValLoopHook')]\n"
GONE = 'asks for np.in1d, which numpy .* has no more: write np.isin in .*retrieval.py, or take numpy 2.3'
FAILS = not hasattr(np, 'in1d') and 'np.in1d' in inspect.getsource(retrieval)
"""Whether mmpretrain asks numpy for what it has no more."""
needs_metric = pytest.mark.skipif(FAILS, reason="mmpretrain's metric asks for np.in1d, which numpy has no more")
RED = 'After the first validation the model compares pictures with features of weights'


@pytest.mark.parametrize(('lines', 'message'), [
    ("val_evaluator['topk'] = 7\n", GONE if FAILS else 'RetrievalAveragePrecision of the validation asks for the first '
                                                       '7 pictures, and model.prototype.dataset has 6: lower topk'),
    ("model['prototype']['dataset']['data_prefix'] = 'gone'\n", "CustomDataset: image folder '.*gone' does not exist"),
    ("model['prototype']['dataset'].update(ann_file=f'{folder}/list.txt')\n",
     'CustomDataset of the gallery: .*cat/gone.png is not there.*preflight.images=False'),
    ('', GONE if FAILS else None),
])
def test_a_gallery(printed, tmp_path, lines, message):
    (tmp_path / 'list.txt').write_text('cat/gone.png 0\ncat/0.png 0\ndog/0.png 1\n')
    with pytest.raises(PreflightError, match=message) if message else nullcontext():
        assert RED not in printed(CLASSIFIER, RETRIEVER + HOOK + lines.replace('{folder}', str(tmp_path)))


@needs_metric
def test_features_in_a_file_stay_as_they_are(printed, tmp_path):
    torch.save(torch.rand(6, 32), tmp_path / 'features.pth')
    assert RED not in printed(CLASSIFIER, f"{RETRIEVER}model['prototype'] = '{tmp_path}/features.pth'\n")


def test_buffers_come_back_in_their_place():
    model = nn.BatchNorm1d(2)
    held, before = model._buffers, dict(model._buffers)
    with _as_before(SimpleNamespace(model=model)):
        model.register_buffer('features', torch.zeros(3))
        model.running_mean = torch.ones(2)
    assert model._buffers is held
    assert {name: id(buffer) for name, buffer in held.items()} == {name: id(each) for name, each in before.items()}
    assert not model.running_mean.any()


def test_mmpretrain_and_a_later_numpy(monkeypatch):
    """It ended in an AttributeError when all was predicted."""
    monkeypatch.setattr(retrieval, '__file__', 'retrieval.py')
    monkeypatch.setattr(inspect, 'getsource', lambda module: 'np.in1d(pred, target)')
    monkeypatch.delattr(np, 'in1d', raising=False)
    with pytest.raises(ValueError, match=f'this mmpretrain {GONE}'):
        check_numpy(retrieval.RetrievalRecall(topk=1))


@needs_metric
def test_a_gallery_that_is_taken_in_once(printed, monkeypatch):
    """The first validation goes by the weights of now, not by those of the trial."""
    calls, prepare = [], ImageToImageRetriever.prepare_prototype
    monkeypatch.setattr(ImageToImageRetriever, 'prepare_prototype', lambda self: (calls.append(1), prepare(self)))
    found = [printed(CLASSIFIER, f'{RETRIEVER}{lines}randomness = dict(seed=0)\n') for lines in (HOOK, '')]
    assert [RED in each for each in found] == [False, True]
    assert len(calls) == 2  # one validation each
    figures = [each.split('retrieval/mAP@3: ')[1].split()[0] for each in found]
    assert figures[0] == figures[1]
