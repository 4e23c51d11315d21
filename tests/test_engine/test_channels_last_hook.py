"""`--channels-last` changes how features lie in memory, and no number."""

import copy

import pytest
import torch
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack, RoIAlign, RoIAlignRotated, SAConv2d
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import nn

from rkan_mm.engine.channels_last_hook import to_channels_last

BOXES = [[0, 1.0, 1.0, 9.0, 9.0], [1, 2.0, 3.0, 11.0, 8.0]]
ROTATED = [[0, 5.0, 5.0, 4.0, 4.0, 0.3]]


class Regions(nn.Module):
    """An operation on regions, called by position, as mmdet does, or by name."""

    def __init__(self, layer: nn.Module, boxes: list[list[float]], by_name: bool = False) -> None:
        super().__init__()
        self.layer, self.boxes, self.by_name = layer, boxes, by_name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rois = x.new_tensor(self.boxes)
        return self.layer(input=x, rois=rois) if self.by_name else self.layer(x, rois)


OPERATIONS = {
    'RoIAlign': lambda: Regions(RoIAlign(3, 0.5, 0), BOXES),
    'RoIAlign, maximum, by name': lambda: Regions(RoIAlign(3, 0.5, 2, pool_mode='max'), BOXES, by_name=True),
    'RoIAlignRotated': lambda: Regions(RoIAlignRotated(3, 0.5, 2, clockwise=True), ROTATED),
    'DeformConv2d': lambda: DeformConv2dPack(8, 4, 3, padding=1),
    'ModulatedDeformConv2d': lambda: ModulatedDeformConv2dPack(8, 4, 3, padding=1),
    'SAConv2d': lambda: SAConv2d(8, 4, 3, padding=1, use_deform=True),
}


def results(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    y = model(x)
    (y * torch.arange(y.numel()).reshape(y.shape)).sum().backward()
    return [y.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize('name', OPERATIONS)
def test_operations_of_mmcv_read_contiguous_tensors(name):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), OPERATIONS[name]())
    for own in plain[2].parameters():  # offsets that are not zero
        nn.init.normal_(own, std=0.2)
    plain.double()
    laid_out = to_channels_last(to_channels_last(copy.deepcopy(plain)))
    assert laid_out[0].weight.is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 12, 14, dtype=torch.float64)
    for found, right in zip(results(laid_out, x), results(plain, x), strict=True):
        torch.testing.assert_close(found, right)


def test_a_two_stage_detector_has_the_same_losses(root):
    cfg = Config.fromfile(root / 'configs/mask-rcnn_rkanet18_fpn_shapes.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.manual_seed(0)
        plain = MODELS.build({**cfg.model, 'roi_head': {**cfg.model.roi_head, 'mask_head': None}})
    plain.init_weights()
    sample = DetDataSample(metainfo=dict(img_shape=(96, 96), batch_input_shape=(96, 96), pad_shape=(96, 96)))
    corners = torch.tensor([[10.0, 10.0, 60.0, 70.0], [30.0, 20.0, 90.0, 90.0]])
    sample.gt_instances = InstanceData(bboxes=corners, labels=torch.tensor([0, 2]))
    x, losses = torch.randn(1, 3, 96, 96), []
    for model in (plain, to_channels_last(copy.deepcopy(plain))):
        torch.manual_seed(1)
        losses.append(model.loss(x, [copy.deepcopy(sample)]))
    for name in ('loss_cls', 'loss_bbox', 'acc'):
        torch.testing.assert_close(losses[1][name], losses[0][name], atol=1e-5, rtol=1e-3)
