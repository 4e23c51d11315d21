"""What is looked at: a trained model, and images as its config prepares them."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from collections.abc import Callable, Iterator, Sequence
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
from mmengine.structures import BaseDataElement, InstanceData
from torch import nn

from rkan_mm.deploy.pictures import gives_bgr
from rkan_mm.engine.run_error import PreflightError
from rkan_mm.preflight import load_for_testing
from rkan_mm.preflight.building import building
from rkan_mm.preflight.classification import check_classification
from rkan_mm.preflight.config import scope, switches
from rkan_mm.preflight.datasets import check_data_sets, common
from rkan_mm.preflight.run_hook import check_classes, learned_classes
from rkan_mm.spread import spread
from rkan_mm.visualization.overlay import read_rgb

from .comparison import plain_boxes
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
        PreflightError: the model has no KAN layer, the checkpoint is of another model or other classes, the device
            cannot be used, or there are no images.
    """

    def __init__(self, cfg: Config, checkpoint: str, images: Sequence[str] = (), num_images: int = 20,
                 device: str | None = None, any_model: bool = False, allow_partial: bool = False) -> None:
        self.cfg, self.checkpoint, self.images = cfg, checkpoint, list(images)
        self.device = device or get_device()
        self.scope = scope(cfg) or 'mmengine'
        init_default_scope(self.scope)
        with building('The model cannot be built'):
            model_cfg = copy.deepcopy(cfg.model)
            if cfg.get('data_preprocessor'):
                model_cfg.setdefault('data_preprocessor', copy.deepcopy(cfg.data_preprocessor))
            self.model = revert_sync_batchnorm(MODELS.build(model_cfg))
        if not any_model and not kan_layers(self.model):
            raise PreflightError(f'{cfg.filename}: {type(self.model).__name__} has no KAN layer (RKANet, KANConv*, '
                                 'KANLinear); there is nothing to look into.')
        self._meta = load_for_testing(self.model, checkpoint, allow_partial, cfg).get('meta') or {}
        try:
            self.model.to(self.device)
        except (AssertionError, RuntimeError) as error:
            raise PreflightError(f'Device {self.device!r} cannot be used: {str(error).splitlines()[0]}') from error
        self.model.eval()
        self.is_detector = self.scope != 'mmpretrain'
        self._dataset = None
        self._places: list[int] = []
        if self.images:
            if not any('LoadImage' in str(step['type']) for step in self.pipeline):
                raise PreflightError(f'{cfg.filename}: its data set is one file, and its pipeline loads no images from '
                                     'files; leave the images out to look at some of its own.')
            self.samples = self.prepared(self.images)
        else:
            self._places = spread(len(self.dataset), num_images)
            if not self._places:
                raise PreflightError(f'{cfg.filename}: no images to look at; give some, or --num-images above 0.')
            self.samples = Samples(lambda i: self.sample(self._places[i]), len(self._places))

    def prepared(self, images: Sequence[str]) -> Samples:
        """Images as the pipeline of the validation set packs them, each when it is asked for."""
        pipeline = Compose([TRANSFORMS.build(step) for step in self.pipeline if 'LoadAnno' not in str(step['type'])])
        return Samples(lambda i: pipeline(dict(img_path=images[i], img_id=i)), len(images))

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
        """The config's validation set, built at its first use.

        Raises:
            PreflightError: its files are not there, or it has other classes than the model or the checkpoint.
        """
        if self._dataset is None:
            what = 'validation' if self.cfg.get('val_dataloader') else 'test'
            self._dataset = self._built(self._loader.dataset, what)
        return self._dataset

    def of_training(self, number: int) -> Samples:
        """So many samples of the config's training set, evenly spread, as the validation set's pipeline packs them.

        Raises:
            PreflightError: the config has no training set, or its files are not there.
        """
        if not self.cfg.get('train_dataloader'):
            raise PreflightError(f'{self.cfg.filename} has no training data: give images.')
        dataset = self._built(with_pipeline(self.cfg.train_dataloader.dataset, self.pipeline), 'train')
        places = spread(len(dataset), number)
        return Samples(lambda i: dataset[places[i]], len(places))

    def _built(self, dataset: ConfigDict, what: str) -> Any:
        """A data set whose files are there, and whose classes are those of the model and the checkpoint."""
        alone = copy.deepcopy(self.cfg)
        for name in ('train_dataloader', 'val_dataloader', 'test_evaluator'):
            alone.pop(name, None)
        alone.test_dataloader = {**self._loader, 'dataset': dataset}
        check_data_sets(alone, ('test',))
        check_classification(alone, False)
        with building('The data set cannot be built'), quiet(), DefaultScope.overwrite_default_scope(self.scope):
            built = DATASETS.build(copy.deepcopy(dataset))
            if hasattr(built, 'full_init'):
                built.full_init()
        if switches(self.cfg)['classes']:
            check_classes(self.model, self.cfg, {what: built}, learned_classes(self._meta))
        return built

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes, where data set or checkpoint tell."""
        given = (getattr(self._dataset, 'metainfo', None), self._meta.get('dataset_meta'))
        found = next(filter(None, (common(meta).get('classes') for meta in given)), None)
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

    def sample(self, place: int) -> dict:
        """A sample of the validation set.

        Raises:
            PreflightError: its image cannot be read.
        """
        try:
            return self.dataset[place]
        except Exception as error:  # each library has its own for a torn file
            path = self._info(place).get('img_path')
            if path is None or _can_be_read(path):
                raise
            raise PreflightError(f'Image {path!r} of the validation set cannot be read as one.') from error

    def _info(self, place: int) -> dict:
        dataset = self.dataset
        while not hasattr(dataset, 'get_data_info') and hasattr(dataset, 'dataset'):
            dataset = dataset.dataset
        return dataset.get_data_info(place) if hasattr(dataset, 'get_data_info') else {}

    def name(self, i: int) -> str:
        """Of an image that is looked at."""
        return Path(self.images[i]).name if self.images else self.name_of(self._places[i])

    def picture(self, i: int) -> np.ndarray:
        """An image that is looked at, (H, W, 3) RGB."""
        return read_rgb(self.images[i]) if self.images else self.picture_of(self._places[i])

    def as_seen(self, i: int) -> np.ndarray:
        """An image that is looked at as the model has it, scaled, cropped and padded, (H, W, 3) RGB."""
        sample = self.samples[i]
        inputs = sample['inputs'].cpu()
        if inputs.dtype != torch.uint8:  # the pipeline has normalised it
            inputs = (255 * (inputs - inputs.min()) / (inputs.max() - inputs.min()).clamp(min=1e-12)).byte()
        picture = inputs.flip(0) if len(inputs) == 3 and gives_bgr(self.pipeline) else inputs[:3]
        canvas = np.zeros((*self.batch(sample)['inputs'].shape[2:], 3), np.uint8)
        canvas[:inputs.shape[1], :inputs.shape[2]] = (picture if len(picture) == 3 else picture[:1]).movedim(0, -1)
        return canvas

    def name_of(self, place: int) -> str:
        """Of an image of the validation set; its place where it has no file."""
        path = self._info(place).get('img_path')
        return f'image-{place}' if path is None else Path(path).name

    def picture_of(self, place: int) -> np.ndarray:
        """An image of the validation set, (H, W, 3) RGB."""
        info = self._info(place)
        if info.get('img_path') is not None:
            return read_rgb(info['img_path'])
        image = np.asarray(info['img'])  # data sets that are one file, such as MNIST and CIFAR
        return image if image.ndim == 3 else image[..., None].repeat(3, 2)


class Samples(Sequence):
    """Samples that are prepared when they are asked for: those of a whole data set do not fit into memory.

    Args:
        prepare: gives the sample at a place.
        number: of samples.

    Example:
        >>> samples = Samples(lambda i: dict(i=i), 3)
        >>> samples[1:]
        [{'i': 1}, {'i': 2}]
    """

    def __init__(self, prepare: Callable[[int], dict], number: int) -> None:
        self._prepare, self._number = prepare, number

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self._prepare(i) for i in range(self._number)[place]]
        return self._prepare(range(self._number)[place])


def with_pipeline(dataset: dict, pipeline: list[dict]) -> dict:
    """The config of a data set whose pictures another pipeline prepares; what mixes several pictures is left out.

    Example:
        >>> with_pipeline(dict(type='RepeatDataset', dataset=dict(type='CustomDataset', pipeline=['augment'])), [])
        {'type': 'RepeatDataset', 'dataset': {'type': 'CustomDataset', 'pipeline': []}}
    """
    if 'datasets' in dataset:
        return {**dataset, 'datasets': [with_pipeline(part, pipeline) for part in dataset['datasets']]}
    if 'dataset' in dataset:
        inner = with_pipeline(dataset['dataset'], pipeline)
        return inner if 'pipeline' in dataset else {**dataset, 'dataset': inner}
    return {**dataset, 'pipeline': copy.deepcopy(pipeline)}


def light(result: BaseDataElement) -> BaseDataElement:
    """A prediction without masks and maps of the image's size, which of a whole data set do not fit into memory."""
    kept = type(result)(metainfo=dict(result.metainfo))
    for name in ('pred_label', 'pred_score', 'gt_label'):
        if name in result:
            kept.set_field(result.get(name), name)
    if 'pred_instances' in result:
        found = result.pred_instances
        kept.pred_instances = InstanceData(bboxes=plain_boxes(found), labels=found.labels, scores=found.scores)
    return kept


def _can_be_read(path: str) -> bool:
    try:
        read_rgb(path)
    except Exception:  # OpenCV's own errors, on some torn files
        return False
    return True


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
