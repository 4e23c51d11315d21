import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData

from rkan_mm.apis import demo
from rkan_mm.apis.demo import ap_table
from rkan_mm.apis.runner import load_config
from rkan_mm.datasets.shapes import make_shapes
from rkan_mm.preflight import PreflightError
from rkan_mm.visualization import draw_gallery


@pytest.fixture
def dataset(root, tmp_path):
    from mmdet.registry import DATASETS
    from mmengine.registry import init_default_scope
    init_default_scope('mmdet')
    make_shapes(tmp_path / 'shapes', 1, 3, size=64)
    cfg = load_config(str(root / 'configs/mask-rcnn_rkanet18_fpn_shapes.py'), dict(data_root=str(tmp_path / 'shapes')))
    return DATASETS.build(cfg.val_dataloader.dataset)


class Oracle(torch.nn.Module):
    """Predicts the ground truth, the first instance with a low score."""

    def test_step(self, data):
        sample = data['data_samples'][0]
        sample.gt_instances.masks = sample.gt_instances.masks.resize(sample.ori_shape)
        truth = sample.gt_instances
        masks = torch.from_numpy(truth.masks.masks.astype(bool))
        scores = torch.ones(len(masks))
        scores[0] = 0.1
        sample.pred_instances = InstanceData(labels=truth.labels, masks=masks, scores=scores)
        return [sample]


def test_predictions_above_the_threshold_are_drawn_beside_the_truth(dataset, tmp_path):
    picture = cv2.imread(str(draw_gallery(Oracle(), dataset, tmp_path / 'new/out.png', num_images=3, zoom=2)))
    assert picture.shape == (2 * (128 + 8), 2 * (2 * 128 + 4 * 4), 3)
    drawn = dict(truth=0, predicted=0)
    for i in range(3):
        plain = cv2.resize(cv2.imread(dataset.get_data_info(i)['img_path']), None, fx=2, fy=2,
                           interpolation=cv2.INTER_CUBIC).astype(int)
        tile = picture[i // 2 * 136:][:128, i % 2 * 272:]
        drawn['truth'] += (np.abs(tile[:, :128] - plain).max(-1) > 40).sum()
        drawn['predicted'] += (np.abs(tile[:, 132:260] - plain).max(-1) > 40).sum()
    assert 0 < drawn['predicted'] < drawn['truth']


def test_table_shows_what_there_is():
    metrics = {f'coco/{kind}_{name}': 0.5 for kind in ('bbox', 'segm')
               for name in ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m')}
    metrics |= {'coco/bbox_mAP_l': -1.0, 'coco/segm_mAP_l': -1.0}
    table = ap_table(metrics, 'x')
    assert [column.header for column in table.columns] == ['', 'AP', 'AP50', 'AP75', 'APs', 'APm', 'APl']
    assert list(table.columns[-1].cells) == ['-', '-']
    assert list(table.columns[2].cells) == ['0.500', '0.500']
    assert list(ap_table({}, 'x').columns[1].cells) == ['-', '-']  # nothing was found in any picture


@pytest.mark.parametrize('options', [
    ['--no-validate'], ['--cfg-options', 'val_evaluator.metric=bbox'], ['--config', 'rkanet18-w8_1xb128-4e_fmnist']])
def test_a_demo_that_would_have_nothing_to_show(options, monkeypatch):
    """It is told before the training."""
    monkeypatch.setattr(demo, 'train', None)
    monkeypatch.setattr(demo, 'make_shapes', None)
    config = [] if '--config' in options else ['--config', 'mask-rcnn_rkanet18_fpn_shapes']
    with pytest.raises(PreflightError, match='The demo trains on its own shapes, and shows masks and the AP of its '):
        demo.main([*config, *options])
