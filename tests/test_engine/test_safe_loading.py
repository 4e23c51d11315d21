"""A checkpoint with code in it is refused wherever one can be given, and the code does not run."""

import os
from pathlib import Path

import pytest
import torch
from mmengine.runner.checkpoint import _load_checkpoint

from rkan_mm.apis import convert, infer, runner
from rkan_mm.datasets.shapes import make_shapes
from rkan_mm.engine.safe_loading import FORBID, FORCE, safe_loading
from rkan_mm.preflight import PreflightError

SHAPES = 'configs/mask-rcnn_rkanet18_fpn_shapes.py'


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def bad(tmp_path):
    """A checkpoint that makes the folder ``ran`` beside it when it is read as a pickle."""
    torch.save(dict(state_dict={'x': torch.zeros(1)}, meta=Malicious(str(tmp_path / 'ran'))), tmp_path / 'bad.pth')
    yield str(tmp_path / 'bad.pth')
    assert not (tmp_path / 'ran').exists()


@pytest.fixture
def train(root, tmp_path):
    data = make_shapes(tmp_path / 'shapes', 1, 1, size=64)
    start = [str(root / SHAPES), '--work-dir', str(tmp_path / 'work')]
    return lambda *argv, options=(): runner.train([*start, *argv, '--cfg-options', f'data_root={data}', *options])


def test_the_file_is_malicious(bad, tmp_path):
    torch.load(bad, weights_only=False)
    assert (tmp_path / 'ran').is_dir()
    (tmp_path / 'ran').rmdir()


REFUSED = r"bad.pth' cannot be read as plain weights: .*mkdir"


def test_load_from(bad, train):
    with pytest.raises(PreflightError, match=REFUSED):
        train(options=[f'load_from={bad}'])


def test_init_cfg(bad, train):
    with pytest.raises(PreflightError, match=REFUSED):
        train(options=['model.backbone.init_cfg.type=Pretrained', f'model.backbone.init_cfg.checkpoint={bad}'])


def test_resume(bad, train):
    with pytest.raises(PreflightError, match=REFUSED):
        train('--resume', bad)


def test_resume_would_run_a_config(train, tmp_path):
    text = f'import os; os.mkdir({str(tmp_path / "ran")!r})'
    torch.save(dict(state_dict={}, meta=dict(epoch=0, iter=0, config=text)), tmp_path / 'config.pth')
    with pytest.raises(PreflightError, match=r'brings a config \(meta.config\), which would be run as code'):
        train('--resume', str(tmp_path / 'config.pth'))
    assert not (tmp_path / 'ran').exists()


def test_test(bad, root, tmp_path):
    data = make_shapes(tmp_path / 'shapes', 1, 1, size=64)
    with pytest.raises(PreflightError, match=REFUSED):
        runner.test([str(root / SHAPES), bad, '--cfg-options', f'data_root={data}'])


def test_infer(bad, root, tmp_path):
    image = make_shapes(tmp_path / 'shapes', 1, 1, size=64) / 'val/000000.png'
    with pytest.raises(PreflightError, match=REFUSED):
        infer.main([str(root / SHAPES), bad, str(image)])


def test_convert(bad, root, tmp_path):
    with pytest.raises(PreflightError, match=REFUSED):
        convert.main(['torchvision', bad, str(tmp_path / 'out.pth'), '--config', str(root / SHAPES)])


@pytest.mark.parametrize('forbidden', ['0', '1'])
def test_a_download(bad, tmp_path, monkeypatch, forbidden):
    monkeypatch.setenv(FORBID, forbidden)  # what people set for old checkpoints on torch 2.6
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    (tmp_path / 'hub/checkpoints').mkdir(parents=True)
    Path(bad).rename(tmp_path / 'hub/checkpoints/bad.pth')
    with pytest.raises(PreflightError, match='was refused, for it holds more than plain weights: .*mkdir'), \
            safe_loading():
        _load_checkpoint('https://example.org/bad.pth', map_location='cpu')
    assert os.environ[FORBID] == forbidden
    assert FORCE not in os.environ


def test_mmengines_loading(bad):
    with pytest.raises(PreflightError, match='A checkpoint was refused'), safe_loading():
        _load_checkpoint(bad, map_location='cpu')
