"""Shared by all tests: tiny backbones, a clean default scope, paths."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

ROOT = Path(__file__).resolve().parent.parent


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker('gpu') and not torch.cuda.is_available():
        pytest.skip('needs a GPU; there is none here')


@pytest.fixture
def root() -> Path:
    return ROOT


@pytest.fixture(autouse=True)
def _isolated():
    """Seed torch; forget mmengine's default scope and visualizer and the default dtype, whoever set them.

    And let torch's own log of ``checkpoint(debug=True)`` propagate again: pytest would listen to it, and the records of
    torch < 2.13 are no messages that another handler could write.
    """
    torch.manual_seed(0)
    DefaultScope._instance_dict.clear()  # a fixture of a whole module may have set it
    before = _switches()
    yield
    DefaultScope._instance_dict.clear()
    Visualizer._instance_dict.clear()
    torch.set_default_dtype(torch.float32)
    logging.getLogger('LoggingTensor').propagate = True
    assert _switches() == before, 'what this test switched in torch would reach all tests after it'


def _switches() -> tuple:
    """What torch does throughout the process: gradients, autocast, and whether it compiles."""
    frames = sys.modules.get('torch._dynamo.eval_frame')
    return (torch.is_grad_enabled(), torch.is_autocast_enabled('cpu'), torch.is_autocast_enabled('cuda'),
            frames._stance.stance if frames else 'default')


@pytest.fixture(scope='session')
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the configs of ``small_runs`` read: ``shapes``, drawn, and ``pictures`` in folders of three classes."""
    from small_runs import make_pictures

    from rkan_mm.datasets.shapes import make_shapes
    folder = tmp_path_factory.mktemp('small')
    make_shapes(folder / 'shapes', num_train=2, num_val=2, size=64, seed=5)  # the val has all classes
    make_pictures(folder / 'pictures')
    return folder


@pytest.fixture
def printed(small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[[str, str], str]:
    """Train a config of ``small_runs`` with lines behind it, and give what was printed."""
    from rkan_mm.apis import runner

    def train(text: str, lines: str) -> str:
        for name in ('shapes', 'pictures'):
            text = text.replace(f"'{name}'", repr(str(small_data / name)))
        (tmp_path / 'config.py').write_text(text + lines)
        runner.train([str(tmp_path / 'config.py'), '--work-dir', str(tmp_path / 'work')])
        return capsys.readouterr().out

    return train


@pytest.fixture
def without_tf32() -> Iterator[None]:
    """Single precision on a GPU in full; a test may set it otherwise."""
    places = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    yield
    for place, value in zip(places, before, strict=True):
        place.allow_tf32 = value


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def quick_build(monkeypatch):
    """Leave the weights of large layers as memory has them, for tests that load or never look at them.

    Drawing random numbers takes most of the time of building a large model.
    """
    for layer in (torch.nn.Conv2d, torch.nn.Linear):
        monkeypatch.setattr(layer, 'reset_parameters', lambda self: None)


@contextmanager
def on_meta() -> Iterator[None]:
    """Build models without memory or time for their weights: on torch's meta device.

    The rates of stochastic depth, which mm takes from ``torch.linspace``, remain numbers.
    """
    with patch('torch.linspace', partial(torch.linspace, device='cpu')), torch.device('meta'):
        yield


@pytest.fixture
def train_to(small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Train the small classifier, an epoch for each given figure of its validations; None is none at all."""
    from mmpretrain.evaluation import Accuracy
    from small_runs import CLASSIFIER

    from rkan_mm.apis import runner

    def run(figures, lines='', *flags, epochs=None):
        left = [*([] if 'preflight' in lines else [0.0]), *figures]  # the first one is of the trial

        def compute(metric, results):
            value = left.pop(0)
            return {} if value is None else {'top1' if metric.prefix == 'accuracy' else 'figure': value}
        monkeypatch.setattr(Accuracy, 'compute_metrics', compute)
        (tmp_path / 'cls.py').write_text(
            CLASSIFIER.replace("'pictures'", repr(str(small_data / 'pictures'))) + lines + 'train_cfg = dict('
            f'by_epoch=True, max_epochs={epochs or len(figures)}, val_interval=1)\n')
        done = runner.train([str(tmp_path / 'cls.py'), '--work-dir', str(tmp_path / 'work'), *flags])
        return done, json.loads((tmp_path / 'work/summary.json').read_text())['metrics'].get('accuracy/top1')
    return run
