"""Values that are refused only where mm would come to nothing by them."""

import pytest
from mmengine.config import Config

from rkan_mm.preflight import PreflightError
from rkan_mm.preflight.values import check_ranges

RETINA = dict(type='RetinaNet', bbox_head=dict(type='RetinaHead'), test_cfg=dict(nms_pre=0, max_per_img=100))
NO_LIMIT = (
    dict(type='FasterRCNN', test_cfg=dict(rpn=dict(nms_pre=0, max_per_img=100), rcnn=dict(max_per_img=0))),
    dict(type='RPN', test_cfg=dict(nms_pre=0, max_per_img=100)),
    dict(type='SOLO', mask_head=dict(type='SOLOHead'), test_cfg=dict(nms_pre=0, max_per_img=0)),
    dict(type='CenterNet', bbox_head=dict(type='CenterNetHead'), test_cfg=dict(max_per_img=0)))


@pytest.mark.parametrize('model', NO_LIMIT, ids=lambda model: model['type'])
def test_zero_is_no_limit_for_some(model):
    check_ranges(Config(dict(model=model)), training=False)


def test_zero_leaves_nothing_for_others():
    with pytest.raises(PreflightError, match='nms_pre=0 leaves no prediction'):
        check_ranges(Config(dict(model=RETINA)), training=False)


def test_an_interval_of_validations_that_there_are_not():
    cfg = Config(dict(model={}, train_cfg=dict(val_interval=0)))
    check_ranges(cfg, training=True)
    cfg.val_cfg = {}
    with pytest.raises(PreflightError, match='val_interval=0'):
        check_ranges(cfg, training=True)
