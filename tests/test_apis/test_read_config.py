"""Configs by path and by name, and ours as bases."""

import pytest
from config_files import CONFIGS
from mmengine.config import Config
from mmengine.registry import MODELS

from rkan_mm.apis.configs import find_config, read_config
from rkan_mm.apis.loading import load_config
from rkan_mm.preflight import PreflightError

NAME = 'mask-rcnn_rkanet50_fpn_1x_coco'


@pytest.mark.parametrize('name', [NAME, f'{NAME}.py', f'rkan_mm::{NAME}.py'])
def test_ours_by_name(name, root):
    assert read_config(name).to_dict() == read_config(str(root / f'configs/{NAME}.py')).to_dict()


def test_every_config_by_its_name_alone():
    for path in CONFIGS:
        assert find_config(path.stem).endswith(f'{path.stem}.py')


def test_a_folder_may_stand_before_the_name():
    assert find_config('coco/mask-rcnn_rkanet-e50_fpn_1x_coco').endswith('coco/mask-rcnn_rkanet-e50_fpn_1x_coco.py')
    with pytest.raises(PreflightError, match=r"Config 'voc/mask-rcnn_rkanet-e50_fpn_1x_coco' does not exist; did you "):
        find_config('voc/mask-rcnn_rkanet-e50_fpn_1x_coco')


@pytest.mark.parametrize('base', [f"'rkan_mm::{NAME}.py'", f'["rkan_mm::{NAME}.py", "./other.py"]', "'./middle.py'"])
def test_ours_as_a_base(tmp_path, root, base):
    (tmp_path / 'other.py').write_text('')
    (tmp_path / 'middle.py').write_text(f"_base_ = 'rkan_mm::{NAME}.py'\n")
    (tmp_path / 'mine.py').write_text(f'_base_ = {base}\nmodel = dict(neck=dict(out_channels=128))\n')
    cfg = read_config(str(tmp_path / 'mine.py'))
    assert cfg.filename == str(tmp_path / 'mine.py')
    expected = read_config(NAME)
    expected.model.neck.out_channels = 128
    assert cfg.to_dict() == expected.to_dict()


def test_the_folder_of_a_config_over_ours(tmp_path):
    (tmp_path / 'mine.py').write_text(f"_base_ = 'rkan_mm::{NAME}.py'\nload_from = '{{{{ fileDirname }}}}/last.pth'\n")
    assert read_config(str(tmp_path / 'mine.py')).load_from == f'{tmp_path}/last.pth'


def test_a_base_for_self_supervision(tmp_path):
    """Mmengine writes the scope of a base into all that has a type, and hands it on to functions."""
    (tmp_path / 'mine.py').write_text("_base_ = 'mmpretrain::mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k.py'\n")
    assert '_scope_' in read_config(str(tmp_path / 'mine.py')).train_dataloader.collate_fn
    cfg = load_config(str(tmp_path / 'mine.py'))
    assert cfg.train_dataloader.collate_fn == dict(type='default_collate')
    assert cfg.train_dataloader.sampler._scope_ == 'mmpretrain'


def test_a_base_that_is_not_ours(tmp_path):
    (tmp_path / 'mine.py').write_text(f"_base_ = 'rkan_mm::{NAME[:-1]}.py'\n")
    with pytest.raises(PreflightError, match=f'did you mean {NAME} or'):
        read_config(str(tmp_path / 'mine.py'))


def test_operations_of_mmcv_and_hidden_classes_in_a_pure_python_config_and_its_dump(tmp_path):
    (tmp_path / 'pure.py').write_text('''
from mmcv.ops import RoIAlign, nms
import mmcv.ops
from mmdet.models.losses.smooth_l1_loss import L1Loss
from mmpretrain.models.losses.asymmetric_loss import AsymmetricLoss
from torch.nn import ReLU
losses = [dict(type=L1Loss), dict(type=AsymmetricLoss)]
model = dict(rpn=[dict(nms=dict(type=nms, iou_threshold=0.7)), dict(nms=dict(type=mmcv.ops.soft_nms))],
             roi_layer=dict(type=RoIAlign), act_cfg=dict(type=ReLU))
''')
    Config.fromfile(tmp_path / 'pure.py').dump(tmp_path / 'dumped.py')
    assert 'mmcv.ops.nms' in (tmp_path / 'dumped.py').read_text()
    for name in ('pure', 'dumped'):
        cfg = read_config(str(tmp_path / f'{name}.py'))
        assert [type(MODELS.build(loss)).__name__ for loss in cfg.losses] == ['L1Loss', 'AsymmetricLoss']
        model = cfg.to_dict()['model']
        assert [part['nms']['type'] for part in model['rpn']] == ['nms', 'soft_nms']
        assert (model['roi_layer']['type'], model['act_cfg']['type']) == ('RoIAlign', 'torch.nn.ReLU')
