"""The config files, their entries in metafile.yml, and what tests ask of a config."""

from __future__ import annotations

import copy
from functools import cache
from importlib.util import find_spec

import torch
import yaml
from conftest import ROOT
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope

LIBRARIES = {'segmentation': 'mmseg', 'rotated': 'mmrotate'}  # folders whose configs need other libraries, too
PATHS = {path.stem: path for path in sorted((ROOT / 'configs').rglob('*.py')) if '_base_' not in path.parts}
CONFIGS = [path for path in PATHS.values() if find_spec(LIBRARIES.get(path.parent.name, 'mmdet'))]
METAFILES = sorted((ROOT / 'configs').glob('*/metafile.yml'))
ENTRIES: dict[str, dict] = {entry['Name']: entry for path in METAFILES
                            for entry in yaml.safe_load(path.read_text())['Models']}
PAGES = [*sorted((ROOT / 'configs').glob('*/README.md')), ROOT / 'docs/numbers.md']


@cache
def _read(name: str) -> Config:
    return Config.fromfile(PATHS.get(name, ROOT / f'configs/{name}.py'))


def load(name: str) -> Config:
    """A config of its own, in its default scope, with the data preprocessor where mmengine's runner puts it."""
    cfg = copy.deepcopy(_read(name))
    if 'model' not in cfg:  # a recipe alone
        init_default_scope('mmpretrain')
        return cfg
    init_default_scope(cfg.default_scope)
    if cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return cfg


def epoch_rates(cfg: Config, epochs: int) -> list[float]:
    """Learning rate of each epoch, from the config's own optimizer and schedulers."""
    wrapper = build_optim_wrapper(torch.nn.Linear(1, 1), cfg.optim_wrapper)
    schedulers = [PARAM_SCHEDULERS.build(dict(scheduler, optimizer=wrapper)) for scheduler in cfg.param_scheduler]
    rates = []
    for _ in range(epochs):
        rates.append(wrapper.get_lr()['lr'][0])
        wrapper.optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return rates
