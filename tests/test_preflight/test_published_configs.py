"""The checks pass over mmdet's and mmpretrain's own configs, by what these say of data and heads."""

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import on_meta
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope

from rkan_mm.preflight import checks, datasets
from rkan_mm.preflight.run_hook import _answers_by_labels, check_heads
from rkan_mm.preflight.weights import check_pretrained


def configs(package: str) -> Path:
    return Path(find_spec(package).origin).parent / '.mim/configs'


def read(path: Path) -> Config:
    cfg = Config.fromfile(path)
    cfg.preflight = dict(paths=False, annotations=False)
    return cfg


@pytest.mark.parametrize('name', [
    'panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco', 'mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic',
    'qdtrack/qdtrack_faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval', 'detr/detr_r50_8xb2-150e_coco',
    'soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco', 'yolact/yolact_r50_1xb8-55e_coco',
    'cityscapes/mask-rcnn_r50_fpn_1x_cityscapes', 'point_rend/point-rend_r50-caffe_fpn_ms-1x_coco',
    'openimages/faster-rcnn_r50_fpn_32xb2-1x_openimages', 'solo/solo_r50_fpn_1x_coco', 'htc/htc_r50_fpn_1x_coco',
    'rpn/rpn_r50_fpn_1x_coco'])
def test_heads_of_mmdet(name):
    cfg = read(configs('mmdet') / f'{name}.py')
    init_default_scope('mmdet')
    with on_meta():
        model = MODELS.build(cfg.model)
    for split in ('train', 'val'):
        data = next(datasets.data_sets(cfg[f'{split}_dataloader']))
        cls = datasets.dataset_class(data, cfg)
        dataset = SimpleNamespace(metainfo={**cls.METAINFO, **data.get('metainfo', {})})
        if _answers_by_labels(model):
            check_heads(model, dataset, split)


def folders() -> list[str]:
    return [f'{package}/{folder.name}' for package in ('mmdet', 'mmpretrain')
            for folder in sorted(configs(package).iterdir()) if folder.is_dir() and folder.name != '_base_']


@pytest.mark.slow
@pytest.mark.parametrize('folder', folders())
def test_data_and_arguments(folder):
    package, name = folder.split('/')
    paths = sorted((configs(package) / name).glob('*.py'))
    for path in paths[::max(1, len(paths) // 4)]:
        try:
            cfg = read(path)
        except Exception:  # some lack a base, or bases of both kinds are mixed: mmengine cannot read them
            continue
        datasets.check_data_sets(cfg, ('train', 'val'))
        datasets.check_data_sets(cfg, ('test', ))
        checks._check_arguments(cfg)


def test_weights_that_a_backbone_renames_itself(tmp_path):
    """Swin of mmdet reads the layout of its authors, in which nothing has our names."""
    torch.save(dict(model={'layers.0.blocks.0.attn.qkv.bias': torch.ones(288)}), tmp_path / 'swin.pth')
    swin = MODELS.build(dict(type='mmdet.SwinTransformer', convert_weights=True, init_cfg=ConfigDict(
        type='Pretrained', checkpoint=str(tmp_path / 'swin.pth'))))
    check_pretrained(swin)
    swin.init_weights()
    assert swin.state_dict()['stages.0.blocks.0.attn.w_msa.qkv.bias'].sum() == 288
