"""Trainings whose validations come to given figures."""

import json

import pytest
from mmpretrain.evaluation import Accuracy
from small_runs import CLASSIFIER

from rkan_mm.apis import runner


@pytest.fixture
def train(small_data, tmp_path, monkeypatch):
    """Train the small classifier, an epoch for each given figure of its validations; None is none at all."""
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
