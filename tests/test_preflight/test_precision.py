"""Half precision that mmcv's ops do not run is refused before the run."""

import pytest
import torch
from mmengine.config import Config

from rkan_mm.engine.run_error import PreflightError
from rkan_mm.preflight import precision
from rkan_mm.preflight.precision import check_precision

WRAPPER = dict(type='AmpOptimWrapper', dtype='bfloat16')
ROI = dict(roi_head=dict(bbox_roi_extractor=dict(roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0))))
FOCAL = dict(bbox_head=dict(loss_cls=dict(type='FocalLoss', use_sigmoid=True)))


def config(model: dict, **wrapper) -> Config:
    return Config(dict(model=model, optim_wrapper={**WRAPPER, **wrapper}))


@pytest.mark.parametrize(('name', 'model'), [('RoIAlign', ROI), ('sigmoid_focal_loss', FOCAL)])
def test_what_a_gpu_lacks_is_named(name, model, monkeypatch):
    """Each op is tried; here all fail as mmcv 2.3's did on an H200."""
    def fail(op, dtype):
        raise NotImplementedError
    monkeypatch.setattr(precision, 'get_device', lambda: 'cuda')
    monkeypatch.setattr(precision, '_tried', fail)
    with pytest.raises(PreflightError, match=f'mmcv has no {name} in bfloat16'):
        check_precision(config(model))
    check_precision(config(model, dtype='float16'))
    check_precision(config(dict(head=dict(loss_cls=dict(type='CrossEntropyLoss')))))


def test_what_runs_or_fails_by_itself_is_not_refused(monkeypatch):
    monkeypatch.setattr(precision, 'get_device', lambda: 'cuda')
    for error in (None, RuntimeError('no such device')):
        def tried(op, dtype, error=error):
            if error:
                raise error
        monkeypatch.setattr(precision, '_tried', tried)
        check_precision(config(ROI))


def test_an_op_is_tried_where_the_model_will_be():
    """On a CPU, mmcv's RoIAlign is without bfloat16 too."""
    pytest.importorskip('mmcv._ext', reason='needs the compiled ops of mmcv')
    align = precision._ops_of(config(ROI))['RoIAlign']
    assert precision._runs(align, torch.float32)
    assert not precision._runs(align, torch.bfloat16)
