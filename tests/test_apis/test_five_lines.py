"""mmdet's own base configs with the five lines of the README train and are evaluated, or say which stage to write."""

import json

import pytest
from mmengine.config import Config

from rkan_mm.apis import runner
from rkan_mm.datasets.shapes import make_shapes
from rkan_mm.engine import RunError

FIVE_LINES = """_base_ = 'mmdet::{base}.py'
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
model = dict(backbone=dict(
    _delete_=True,
    type='rkan_mm.RKANet',
    backbone={{{{_base_.model.backbone}}}}{more}))
"""
TAKEN = {  # base config, what is written beside the five lines, how small pictures become
    'fcos': ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco', '', 5),
    'solo': ('solo/solo_r50_fpn_1x_coco', '', 5),
    'solov2': ('solov2/solov2_r50_fpn_1x_coco', '', 5),
    'mask2former': ('mask2former/mask2former_r50_8xb2-lsj-50e_coco', '', 5),
    'detr': ('detr/detr_r50_8xb2-150e_coco', '', 5),
    'deformable detr': ('deformable_detr/deformable-detr_r50_16xb2-50e_coco', '', 5),
    'dino': ('dino/dino-4scale_r50_8xb2-12e_coco', '', 1.5),
    'yolox': ('yolox/yolox_s_8xb8-300e_coco', ", stages=('stage4', )", 5),
    'cascade mask r-cnn': ('cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco', '', 5),
    'atss': ('atss/atss_r50_fpn_1x_coco', '', 5),
    'gfl': ('gfl/gfl_r50_fpn_1x_coco', '', 5),
    'rtmdet': ('rtmdet/rtmdet_tiny_8xb32-300e_coco', ", stages=('stage4', )", 5),
    'rtmdet-ins': ('rtmdet/rtmdet-ins_tiny_8xb32-300e_coco', ", stages=('stage4', )", 5),
    'centernet': ('centernet/centernet_r18-dcnv2_8xb16-crop512-140e_coco', '', 5),
    'centernet, newer': ('centernet/centernet-update_r50-caffe_fpn_ms-1x_coco', '', 5),
    'paa': ('paa/paa_r50_fpn_1x_coco', '', 5),
    'sparse r-cnn': ('sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco', '', 5),
}
REFUSED = {
    'yolox': ('yolox/yolox_s_8xb8-300e_coco', "no stage 'layer4' in CSPDarknet; .* such as stages=('stage4', )"),
    'rtmdet': ('rtmdet/rtmdet_tiny_8xb32-300e_coco', "no stage 'layer4' in CSPNeXt; .* such as stages=('stage4', )"),
}
SIZES = ('scale', 'scales', 'img_scale', 'crop_size', 'size')


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    """Drawn shapes in COCO's folders, under the first five of COCO's 80 names."""
    from mmdet.datasets import CocoDataset
    folder = make_shapes(tmp_path_factory.mktemp('coco'), num_train=2, num_val=2, size=128)
    for split in ('train', 'val'):
        content = json.loads((folder / f'annotations/{split}.json').read_text())
        for each in content['annotations']:  # polygons, as COCO's
            x, y, width, height = each['bbox']
            each['segmentation'] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        content['categories'] = [dict(id=i, name=name) for i, name in enumerate(CocoDataset.METAINFO['classes'], 1)]
        (folder / f'annotations/instances_{split}2017.json').write_text(json.dumps(content))
        (folder / split).rename(folder / f'{split}2017')
    return folder


def small(node, coco, by):
    """A config for small pictures of another folder, one process, and weights at random."""
    if isinstance(node, str):
        return node.replace('data/coco/', f'{coco}/')
    if isinstance(node, (list, tuple)):
        return type(node)(small(each, coco, by) for each in node)
    if not isinstance(node, dict):
        return node
    node = {name: small(value, coco, by) for name, value in node.items()}
    for name in SIZES:
        if isinstance(sizes := node.get(name), (list, tuple)) and sizes:
            node[name] = [_shrink(size, by) for size in sizes] if isinstance(sizes[0], tuple) else _shrink(sizes, by)
    if (node.get('init_cfg') or {}).get('type') == 'Pretrained':
        node['init_cfg'] = None
    if 'num_workers' in node:
        node.update(num_workers=0, persistent_workers=False)
    return node


def _shrink(size, by):
    return tuple(max(64, int(side / by) // 32 * 32) for side in size) if min(size) >= 320 else size


@pytest.fixture
def train(coco, tmp_path):
    def run(base, more='', by=5):
        (tmp_path / 'five.py').write_text(FIVE_LINES.format(base=base, more=more))
        cfg = small(Config.fromfile(tmp_path / 'five.py').to_dict(), coco, by)
        cfg['train_dataloader'].update(batch_size=2)
        cfg['train_cfg'] = dict(by_epoch=True, max_epochs=1, val_interval=1)
        cfg['load_from'] = None
        Config(cfg).dump(tmp_path / 'small.py')
        return runner.train([str(tmp_path / 'small.py'), '--work-dir', str(tmp_path / 'work')])
    return run


@pytest.mark.slow
@pytest.mark.parametrize('case', TAKEN)
def test_trains_and_is_evaluated(train, case):
    base, more, by = TAKEN[case]
    done = train(base, more, by)
    assert done.iter == len(done.train_dataloader)  # CenterNet's config repeats its data
    bridges = [weight for name, weight in done.model.backbone.bridges.named_parameters() if weight.requires_grad]
    assert bridges
    assert all(weight in done.optim_wrapper.optimizer.state for weight in bridges)  # had a gradient
    assert done.val_loop.evaluator.metrics[0].img_ids == [1, 2]


@pytest.mark.parametrize('case', REFUSED)
def test_says_which_stage_to_write(train, case):
    base, said = REFUSED[case]
    with pytest.raises(RunError, match=said.replace('(', r'\(').replace(')', r'\)')):
        train(base)
