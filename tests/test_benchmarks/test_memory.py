"""Memory is counted, of detectors of any number of classes."""

from mmengine.registry import init_default_scope

from rkan_mm.apis.runner import load_config
from rkan_mm.benchmarks import memory, steps


def test_activations_of_a_detector(root):
    cfg = load_config(str(root / 'configs/mask-rcnn_rkanet18_fpn_shapes.py'))
    init_default_scope('mmdet')
    small, large = (memory.activations(cfg.model, size, 2) for size in (64, 128))
    assert 2 * small < large < 4 * small  # the heads see as many objects
    count = sum(p.numel() for p in memory.MMENGINE_MODELS.build(cfg.model).parameters())
    assert memory.states(cfg.model, 1) == 12 * count


def test_a_detector_of_one_class(root):
    cfg = load_config(str(root / 'configs/mask-rcnn_rkanet18_fpn_shapes.py'))
    for head in (cfg.model.roi_head.bbox_head, cfg.model.roi_head.mask_head):
        head.num_classes = 1
    assert memory.activations(cfg.model, 64, 2) > 0
    assert steps.run(cfg, images=2, size=(64, 64))['loss'] > 0
