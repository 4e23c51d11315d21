"""Memory is counted, of detectors of any number of classes."""

import json

import pytest
from mmengine.config import Config
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


def test_what_is_frozen_when_a_training_begins():
    """Some backbones of mm freeze their stages in ``train`` alone: they had gradients and moments here."""
    init_default_scope('mmdet')
    model_cfg = dict(type='mmdet.CSPNeXt', deepen_factor=0.17, widen_factor=0.125, frozen_stages=4)
    count = sum(p.numel() for p in memory.MMENGINE_MODELS.build(model_cfg).parameters())
    assert memory.states(model_cfg, 1) == 4 * count


def test_the_page_has_the_figures_of_the_record(root):
    (count,) = (step['results']['bytes'] for step in json.loads(
        (root / 'configs/imagenet/logs/check_gpu_h100.json').read_text())['steps'] if step['name'] == 'memory by count')
    assert f'**{count / memory.GIB:.1f} GiB a GPU at batch 8 in fp32**' in (root / 'docs/many-gpus.md').read_text()
    assert f'{count / 1e6:,.0f} MB of `tools/memory.py`' in (root / 'docs/gpu.md').read_text()


def test_a_detector_of_one_class(root):
    cfg = load_config(str(root / 'configs/mask-rcnn_rkanet18_fpn_shapes.py'))
    for head in (cfg.model.roi_head.bbox_head, cfg.model.roi_head.mask_head):
        head.num_classes = 1
    assert memory.activations(cfg.model, 64, 2) > 0
    assert steps.run(cfg, images=2, size=(64, 64))['loss'] > 0


@pytest.mark.parametrize(('optimizer', 'moments'), [
    (dict(type='SGD', lr=0.1), 0), (dict(type='SGD', lr=0.1, momentum=0.9), 1), (dict(type='AdamW', lr=0.1), 2),
    (dict(type='AdamW', lr=0.1, amsgrad=True), 3), (None, 1)], ids=str)
def test_what_the_optimizer_of_a_config_keeps(optimizer, moments):
    assert memory.moments_of(Config(dict(optim_wrapper=dict(optimizer=optimizer)))) == moments


def test_the_optimizer_of_the_config_counts(root, tmp_path, monkeypatch, capsys):
    """With AdamW its second moments were left out, unless --moments 2 was given."""
    monkeypatch.setattr(memory, 'activations', lambda *args: 0)
    text = f"_base_ = {str(root / 'configs/mask-rcnn_rkanet18_fpn_shapes.py')!r}\n"
    init_default_scope('mmdet')
    config = tmp_path / 'adam.py'
    config.write_text(f"{text}optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=0.1))")
    model = memory.MMENGINE_MODELS.build(load_config(str(config)).model)
    count = sum(p.numel() for p in model.parameters())
    for options, numbers in ([], 4), (['--moments', '1'], 3):
        memory.main([str(config), '--out', str(tmp_path / 'out.json'), *options])
        assert json.loads((tmp_path / 'out.json').read_text())['bytes'] == pytest.approx(4 * numbers * count)
    assert '--moments' not in capsys.readouterr().out
    config.write_text(f"{config.read_text()}\ncustom_hooks = [dict(type='EMAHook', ema_type='ExpMomentumEMA')]")
    assert memory.main([str(config)]) == pytest.approx(4 * 5 * count / memory.GIB)
    assert 'averages' in capsys.readouterr().out
    config.write_text(f"{text}optim_wrapper = dict(optimizer=dict(_delete_=True, type='LBFGS', lr=0.1))")  # wants more
    assert memory.main([str(config)]) == pytest.approx(4 * 3 * count / memory.GIB)
    assert 'Give what it keeps by --moments' in capsys.readouterr().out
