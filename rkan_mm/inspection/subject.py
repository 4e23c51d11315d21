"""What is looked at: a trained model, and images as its config prepares them."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, TRANSFORMS, DefaultScope, init_default_scope
from mmengine.structures import BaseDataElement
from torch import nn

from rkan_mm.engine.run_error import PreflightError
from rkan_mm.preflight import load_for_testing

from .functions import kan_layers


class Subject:
    """A model of mmdet or mmpretrain with its weights, in eval mode, and the data of its config.

    Args:
        cfg: its config, as :func:`rkan_mm.apis.runner.load_config` gives it.
        checkpoint: path of its weights, all of them; averaged ones where ``EMAHook`` has saved them.
        images: paths to look at; without any, evenly spread images of the config's validation set.
        num_images: how many of that are looked at.
        device: None takes a GPU where there is one.
        any_model: take one without KAN layers, too.
        allow_partial: see `load_for_testing`.

    Raises:
        PreflightError: the model has no KAN layer, the checkpoint is of another model, or there are no images.
    """

    def __init__(self, cfg: Config, checkpoint: str, images: Sequence[str] = (), num_images: int = 20,
                 device: str | None = None, any_model: bool = False, allow_partial: bool = False) -> None:
        self.cfg, self.checkpoint, self.images = cfg, checkpoint, list(images)
        self.device = device or get_device()
        self.scope = cfg.get('default_scope', 'mmengine')
        init_default_scope(self.scope)
        model_cfg = copy.deepcopy(cfg.model)
        if cfg.get('data_preprocessor'):
            model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
        self.model = revert_sync_batchnorm(MODELS.build(model_cfg))
        if not any_model and not kan_layers(self.model):
            raise PreflightError(f'{cfg.filename}: {type(self.model).__name__} has no KAN layer (RKANet, KANConv*, '
                                 'KANLinear); there is nothing to look into.')
        self._meta = load_for_testing(self.model, checkpoint, allow_partial).get('meta') or {}
        self.model.to(self.device)
        self.model.eval()
        self.is_detector = self.scope != 'mmpretrain'
        self._dataset = None
        if self.images:
            self.samples = self.prepared(self.images)
        else:
            chosen = spread(len(self.dataset), num_images)
            if not chosen:
                raise PreflightError(f'{cfg.filename}: no images to look at; give some, or --num-images above 0.')
            self.samples = [self.dataset[i] for i in chosen]
            self.images = [sample['data_samples'].get('img_path', f'{i}.png')
                           for i, sample in zip(chosen, self.samples, strict=True)]

    def prepared(self, images: Sequence[str]) -> list[dict]:
        """Images as the pipeline of the validation set packs them."""
        pipeline = Compose([TRANSFORMS.build(step) for step in self.pipeline if 'LoadAnno' not in step['type']])
        return [pipeline(dict(img_path=path, img_id=i)) for i, path in enumerate(images)]

    @property
    def _loader(self) -> ConfigDict:
        for split in ('val', 'test'):
            if self.cfg.get(f'{split}_dataloader'):
                return self.cfg[f'{split}_dataloader']
        raise PreflightError(f'{self.cfg.filename} has no validation data: give images.')

    @property
    def pipeline(self) -> list[dict]:
        """Of the config's validation set."""
        node = self._loader.dataset
        while 'pipeline' not in node:
            node = node['dataset'] if 'dataset' in node else node['datasets'][0]
        return node['pipeline']

    @property
    def dataset(self):
        """The config's validation set, built at its first use."""
        if self._dataset is None:
            with quiet(), DefaultScope.overwrite_default_scope(self.scope):
                self._dataset = DATASETS.build(copy.deepcopy(self._loader.dataset))
                if hasattr(self._dataset, 'full_init'):
                    self._dataset.full_init()
        return self._dataset

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes, where data set or checkpoint tell."""
        meta = getattr(self._dataset, 'metainfo', None) or {}
        found = meta.get('classes') or (self._meta.get('dataset_meta') or {}).get('classes')
        return None if found is None else tuple(found)

    def predict(self, samples: Sequence[dict] | None = None, batch_size: int = 1,
                model: nn.Module | None = None) -> Iterator[BaseDataElement]:
        """Results of the model, or of another one, for prepared samples, by default those looked at, on the CPU."""
        samples = self.samples if samples is None else samples
        model = self.model if model is None else model
        for start in range(0, len(samples), batch_size):
            with torch.no_grad():
                results = model.test_step(copy.deepcopy(pseudo_collate(samples[start:start + batch_size])))
            yield from (result.cpu() for result in results)

    def batch(self, sample: dict) -> dict[str, Any]:
        """One prepared sample as the model's forward takes it, normalised and on its device."""
        return self.model.data_preprocessor(copy.deepcopy(pseudo_collate([sample])), False)

    def name(self, i: int) -> str:
        """Of a image that is looked at."""
        return Path(self.images[i]).name


def spread(total: int, number: int) -> list[int]:
    """``number`` of ``total`` places, evenly spread: data sets are often sorted by class.

    Example:
        >>> spread(10, 4)
        [0, 3, 6, 9]
    """
    return sorted(set(np.linspace(0, total - 1, min(number, total)).round().astype(int).tolist())) if total else []


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Meanwhile data sets and evaluators print nothing, and log only what went wrong."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
