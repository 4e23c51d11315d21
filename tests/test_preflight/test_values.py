"""Values that are refused only where mm would come to nothing by them."""

import pytest
from mmengine.config import Config
from mmengine.registry import HOOKS, LOOPS, MODELS
from mmengine.runner import ValLoop

from rkan_mm.preflight import PreflightError
from rkan_mm.preflight.values import check_ranges, check_types


@MODELS.register_module()
class HeadOfOwn:
    pass


@HOOKS.register_module()
class HookOfOwn:
    def __init__(self, interval=1):
        pass


@LOOPS.register_module()
class LoopOfOwn:
    pass


NONE = dict(nms_pre=0, max_per_img=100)
NOTHING = (
    dict(type='RetinaNet', bbox_head=dict(type='RetinaHead'), test_cfg=NONE),
    dict(type='CondInst', bbox_head=dict(type='CondInstBboxHead'), mask_head=dict(type='CondInstMaskHead'),
         test_cfg=NONE),
    dict(type='BoxInst', bbox_head=dict(type='BoxInstBboxHead'), mask_head=dict(type='BoxInstMaskHead'),
         test_cfg=NONE))
NO_LIMIT = (
    dict(type='FasterRCNN', test_cfg=dict(rpn=dict(nms_pre=0, max_per_img=100), rcnn=dict(max_per_img=0))),
    dict(type='RPN', test_cfg=dict(nms_pre=0, max_per_img=100)),
    dict(type='SOLO', mask_head=dict(type='SOLOHead'), test_cfg=dict(nms_pre=0, max_per_img=0)),
    dict(type='SOLOv2', mask_head=dict(type='SOLOV2Head'), test_cfg=dict(nms_pre=0, max_per_img=0)),
    dict(type='YOLACT', bbox_head=dict(type='YOLACTHead'), mask_head=dict(type='YOLACTProtonet'),
         test_cfg=dict(nms_pre=0, max_per_img=0)),
    dict(type='LAD', bbox_head=dict(type='LADHead'), test_cfg=dict(nms_pre=0, max_per_img=0)),
    dict(type='Own', bbox_head=dict(type='HeadOfOwn'), test_cfg=dict(nms_pre=0, max_per_img=0)),
    dict(type='CenterNet', bbox_head=dict(type='CenterNetHead'), test_cfg=dict(max_per_img=0)))


@pytest.mark.parametrize('model', NO_LIMIT, ids=lambda model: model['type'])
def test_zero_is_no_limit_for_some(model):
    check_ranges(Config(dict(model=model, default_scope='mmdet')), training=False)


@pytest.mark.parametrize('model', NOTHING, ids=lambda model: model['type'])
def test_zero_leaves_nothing_for_others(model):
    with pytest.raises(PreflightError, match='nms_pre=0 leaves no prediction'):
        check_ranges(Config(dict(model=model, default_scope='mmdet')), training=False)


@pytest.mark.parametrize('loop', ['LoopOfOwn', LoopOfOwn])
@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_a_loop_of_ones_own_takes_loaders_as_it_likes(loop, split):
    check_types(Config({f'{split}_dataloader': [{}, {}], f'{split}_cfg': dict(type=loop)}))


@pytest.mark.parametrize('loop', [dict(type='ValLoop'), dict(type=ValLoop), {}])
def test_those_of_mmengine_take_one(loop):
    with pytest.raises(PreflightError, match='val_dataloader is of type list'):
        check_types(Config(dict(val_dataloader=[{}, {}], val_cfg=loop)))


def test_an_interval_of_validations_that_there_are_not():
    cfg = Config(dict(model={}, train_cfg=dict(val_interval=0)))
    check_ranges(cfg, training=True)
    cfg.val_cfg = {}
    with pytest.raises(PreflightError, match='val_interval=0'):
        check_ranges(cfg, training=True)


LOOP = dict(type='rkan_mm.ResumableEpochLoop', max_epochs=2)


@pytest.mark.parametrize(('parts', 'where'), [
    (dict(train_cfg=dict(LOOP, val_interval='1')), 'train_cfg.val_interval='),
    (dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval='2'))), 'default_hooks.checkpoint.interv'),
    (dict(custom_hooks=[dict(type='EarlyStoppingHook', monitor='a', min_delta='1e-3')]), r'custom_hooks.0..min_delta='),
    (dict(train_cfg=LOOP, default_hooks=dict(checkpoint=dict(
        type='CheckpointHook', interval=2, filename_tmpl='1', save_best='2')), custom_hooks=[dict(
            type='HookOfOwn', interval='2')]), None),
])
def test_numbers_in_quotes(parts, where):
    """Most fail after the first epoch."""
    cfg = Config(dict(parts, default_scope='mmengine'))
    if where is None:
        return check_ranges(cfg, training=True)
    with pytest.raises(PreflightError, match=f'{where}.* is a text, and a number is wanted there'):
        check_ranges(cfg, training=True)
