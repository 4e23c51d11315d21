"""Predictions on pictures, drawn and as json: the command line of tools/infer.py."""

from __future__ import annotations

import contextlib
import copy
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mmcv
import mmengine
import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose, default_collate
from rich.progress import track

from rkan_mm.engine.safe_loading import safe_loading
from rkan_mm.preflight import PreflightError, check_checkpoint
from rkan_mm.preflight.building import building
from rkan_mm.preflight.config import LIBRARIES, dicts_with, is_mm, kind, scope
from rkan_mm.preflight.datasets import class_names, common, data_sets
from rkan_mm.preflight.red import warn_in_red
from rkan_mm.preflight.values import check_predictions
from rkan_mm.preflight.weights import load_whole, read_anywhere

from .command_line import add_cfg_options, command_line, part, positive
from .image_paths import list_images
from .runner import add_allow_partial, load_config

VISUALIZERS = dict(mmdet='mmdet.DetLocalVisualizer', mmrotate='mmrotate.RotLocalVisualizer',
                   mmseg='mmseg.SegLocalVisualizer')  # where a config has none
ODD = 3
"""Images that may fail before any is predicted; then it is no matter of theirs."""


@safe_loading()
def infer(cfg: Config, checkpoint: str, images: Sequence[str], out_dir: str, score_thr: float = 0.3,
          batch_size: int = 1, device: str | None = None, allow_partial: bool = False,
          failed: dict[str, str] | None = None) -> list[dict]:
    """Predict, and write ``out_dir/vis/<image>`` and ``out_dir/preds/<image>.json``.

    Args:
        cfg: config of mmdet, mmpretrain, mmseg or mmrotate, whose inferencer is taken.
        checkpoint: path or address.
        images: paths.
        out_dir: folder for the results.
        score_thr: detections below it are not drawn; the json has all.
        batch_size: images at a time.
        device: None takes a GPU where there is one.
        allow_partial: predict, with a warning in red, where the checkpoint is of another model in part.
        failed: takes the images that the model cannot take, such as too small ones, and why, if it can take others.

    Returns:
        What is in each json, without those of ``failed``: of mmdet ``bboxes`` (x1, y1, x2, y2 in pixels; of mmrotate
        cx, cy, w, h and the angle in radians), ``scores``, ``labels`` and ``masks`` (RLE); of mmpretrain
        ``pred_scores``, ``pred_label``, ``pred_score`` and, where the checkpoint names its classes, ``pred_class``,
        the last three as lists where an image may have several labels. Of mmseg the labels of all pixels, (H, W), which
        are written as ``preds/<image>.png``.

    Raises:
        PreflightError: the checkpoint cannot be read, or is of another model, see `check_whole`; ``out_dir`` cannot be
            made; no image, or without ``failed`` one of them, can be predicted.
    """
    check_predictions(cfg)
    content = read_anywhere(checkpoint)
    cfg = _for_inference(cfg)
    library = scope(cfg)
    with building('The model cannot be built'):
        if library in ('mmdet', 'mmrotate'):
            inferencer = _det_inferencer()(cfg, weights=checkpoint, device=device, scope=library)
            _name_classes(inferencer, cfg, content)
        elif library == 'mmseg':
            from mmseg.apis import MMSegInferencer
            inferencer = MMSegInferencer(cfg, weights=checkpoint, device=device)
            _name_classes(inferencer, cfg, content)
        else:
            inferencer = _cls_inferencer()(cfg, pretrained=checkpoint, device=device)
            _refuse_others(inferencer.model)
    warning = load_whole(inferencer.model, content, checkpoint, allow_partial, cfg)
    try:
        Path(out_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PreflightError(f'--out-dir {out_dir!r} cannot be made ({error.strerror}): choose another.') from error
    inferencer.show_progress, results = False, []

    def predict(batch: list[str]) -> list:
        if library in ('mmdet', 'mmrotate'):
            return inferencer(batch, batch_size=len(batch), pred_score_thr=score_thr, out_dir=out_dir,
                              no_save_pred=False)['predictions']
        return (_segment if library == 'mmseg' else _classify)(inferencer, batch, Path(out_dir))

    odd: dict[str, Exception] = {}
    with building('The images cannot be predicted'):
        for start in track(range(0, len(images), batch_size), 'Inference'):  # mm's own would keep all drawn pictures
            results += _predicted(predict, list(images[start:start + batch_size]), odd)
            if odd and (failed is None or (not results and len(odd) >= ODD)):
                break
    if odd and (failed is None or not results):
        with building(f'Image {next(iter(odd))!r} cannot be predicted'):
            raise next(iter(odd.values()))
    if failed is not None:
        failed |= {image: _last_line(error) for image, error in odd.items()}
    warn_in_red(warning)
    return results


def _predicted(predict: Callable[[list[str]], list], batch: list[str], odd: dict[str, Exception]) -> list:
    """Results of a batch; of one that fails, as with images of several sizes, those of its images one by one.

    Args:
        odd: takes the images that fail alone.
    """
    try:
        return predict(batch)
    except OSError:  # of the disk, no matter of the image
        raise
    except Exception as error:
        if len(batch) == 1:
            if re.search('out of memory|CUDA error', str(error)):  # others would fail as well
                raise
            odd[batch[0]] = error.with_traceback(None)  # which would keep all feature maps
            return []
    return [result for image in batch for result in _predicted(predict, [image], odd)]


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def _for_inference(cfg: Config) -> Config:
    """What mm's inferencers ask of a config beyond a test: one data set without wrappers, names of transforms."""
    if scope(cfg) not in LIBRARIES:
        raise PreflightError(f'Inference is for configs of {", ".join(LIBRARIES)}; default_scope is {scope(cfg)!r}.')
    dataset = next((dataset for dataset in data_sets(cfg.get('test_dataloader')) if dataset.get('pipeline')), None)
    if dataset is None:
        dataset = next((node for _, node in dicts_with(cfg.get('test_dataloader'), 'pipeline')), None)
    if dataset is None:
        raise PreflightError('The config has no test_dataloader with a pipeline, by which images are loaded.')
    cfg = copy.deepcopy(cfg)
    dataset = copy.deepcopy(dataset)
    for _, step in dicts_with(dataset['pipeline'], 'type'):
        if not isinstance(step['type'], str):
            step['type'] = f'{step["type"].__module__}.{step["type"].__name__}'
    cfg.test_dataloader.dataset = dataset
    if not cfg.get('visualizer') and (visualizer := VISUALIZERS.get(scope(cfg) or '')):
        cfg.visualizer = dict(type=visualizer)
    return cfg


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Otherwise mmpretrain's inferencer would draw a bar for each batch."""
    from mmpretrain.utils import progress
    before, progress.disable_progress_bar = progress.disable_progress_bar, True
    try:
        yield
    finally:
        progress.disable_progress_bar = before


def _classify(inferencer: Any, batch: list[str], out_dir: Path) -> list[dict]:
    """Pictures and json under the names of the images; mmpretrain itself cuts names at their last dot but one."""
    from mmpretrain.visualization import UniversalVisualizer
    inferencer.visualizer = visualizer = inferencer.visualizer or UniversalVisualizer()
    with _without_bars():
        samples = inferencer(batch, batch_size=len(batch), return_datasamples=True)
    results = inferencer.postprocess(samples, [])
    several = any(base.__name__ == 'MultiLabelClsHead' for base in type(inferencer.model.head).__mro__)
    for path, sample, result in zip(batch, samples, results, strict=True):
        result['pred_scores'] = scores = result['pred_scores'].tolist()
        if several:
            labels = sample.pred_label.tolist()
            result.update(pred_label=labels, pred_score=[scores[label] for label in labels])
            if inferencer.classes is not None:
                result['pred_class'] = [inferencer.classes[label] for label in labels]
        mmengine.dump(result, str(out_dir / 'preds' / f'{Path(path).stem}.json'))
        visualizer.visualize_cls(mmcv.imread(path)[..., ::-1], sample, classes=inferencer.classes, draw_gt=False,
                                 name=Path(path).stem, out_file=str(out_dir / 'vis' / f'{Path(path).stem}.png'))
    return results


def _segment(inferencer: Any, batch: list[str], out_dir: Path) -> list[np.ndarray]:
    """Pictures and labels under the names of the images; mmseg itself numbers them."""
    found = inferencer(batch, batch_size=len(batch), return_vis=True)
    drawn, predicted = ([found[name]] if len(batch) == 1 else found[name] for name in ('visualization', 'predictions'))
    for path, picture, label in zip(batch, drawn, predicted, strict=True):
        mmcv.imwrite(mmcv.rgb2bgr(picture), str(out_dir / 'vis' / Path(path).name))
        kind = np.uint8 if label.max(initial=0) < 256 else np.uint16  # as of 847 classes of ADE20K
        mmcv.imwrite(label.astype(kind), str(out_dir / 'preds' / f'{Path(path).stem}.png'))
    return list(predicted)


def _det_inferencer() -> type:
    """mmdet's, for checkpoints of a ConcatDataset with a list of metainfo as well."""
    from mmdet.apis import DetInferencer

    class Inferencer(DetInferencer):
        def _load_weights_to_model(self, model: Any, checkpoint: dict | None, cfg: Any) -> None:
            if checkpoint and 'dataset_meta' in (meta := checkpoint.get('meta') or {}):
                checkpoint = {**checkpoint, 'meta': {**meta, 'dataset_meta': common(meta['dataset_meta'])}}
            super()._load_weights_to_model(model, checkpoint, cfg)

    return Inferencer


def _cls_inferencer() -> type:
    """mmpretrain's, with pictures loaded as the pipeline of the config says; its own leaves that step out."""
    from mmpretrain import ImageClassificationInferencer
    from mmpretrain.registry import TRANSFORMS

    def read(results: dict) -> dict:
        image = mmcv.imread(results['img_path'], channel_order='rgb')
        return {**results, 'img': image, 'img_shape': image.shape[:2], 'ori_shape': image.shape[:2]}

    class Inferencer(ImageClassificationInferencer):
        def _init_pipeline(self, cfg: Config) -> Compose:
            steps = cfg.test_dataloader.dataset.pipeline
            loading = [] if any(kind(step).startswith('Load') for step in steps) else [read]  # RGB in memory
            return Compose([*loading, *map(TRANSFORMS.build, steps)])

        def preprocess(self, inputs: list[str], batch_size: int = 1) -> Iterator[dict]:
            results = (self.pipeline(dict(img_path=path)) for path in inputs)
            yield from map(default_collate, self._get_chunk_data(results, batch_size))

    return Inferencer


def _refuse_others(model: Any) -> None:
    """Models of mmpretrain that answer by no scores of classes, as for retrieval, captions or several tasks."""
    tasks = hasattr(getattr(model, 'head', None), 'task_heads')
    known = any(base.__name__ == 'BaseClassifier' for base in type(model).__mro__) or not is_mm(type(model))
    if tasks or not known:
        raise PreflightError('Of mmpretrain, classifiers of one task predict here, and the model is '
                             f'{type(model.head if tasks else model).__name__}: see its predictions by tools/test.py '
                             'with --out.')


def _name_classes(inferencer: Any, cfg: Config, content: dict) -> None:
    """Where the checkpoint does not name its classes mm would take those of COCO or Cityscapes; the config has them."""
    meta = content.get('meta') or {}
    classes = class_names(cfg.test_dataloader.dataset, cfg)
    if 'dataset_meta' not in meta and 'CLASSES' not in meta and classes:
        inferencer.model.dataset_meta['classes'] = classes
        inferencer.visualizer.dataset_meta = inferencer.model.dataset_meta


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of tools/infer.py."""
    parser = command_line('Predict on pictures with a model of mmdet, mmpretrain, mmseg or mmrotate',
                          'configs/mask-rcnn_rkanet50_fpn_1x_coco.py epoch_12.pth pictures/')
    parser.add_argument('config', help='config file, or the name of one of ours')
    parser.add_argument('checkpoint')
    parser.add_argument('image', nargs='+', help='image, or a folder of images')
    parser.add_argument('--out-dir', help='for vis/ and preds/ (default: work_dirs/<config>/infer)')
    parser.add_argument('--score-thr', type=part, help='detections below it are not drawn (default: 0.3)')
    parser.add_argument('--batch-size', type=positive, default=1)
    parser.add_argument('--device', help='e.g. cpu or cuda:0 (default: a GPU where there is one)')
    add_allow_partial(parser)
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    cfg = load_config(args.config, args.cfg_options)
    check_checkpoint(args.checkpoint)
    if args.score_thr is not None and scope(cfg) in ('mmpretrain', 'mmseg'):
        raise PreflightError(f'--score-thr is of detectors; all that a model of {scope(cfg)} predicts is drawn.')
    broken: list[str] = []
    images = list_images(args.image, broken, named=True)
    out_dir = args.out_dir or str(Path(cfg.work_dir) / 'infer')
    score_thr = 0.3 if args.score_thr is None else args.score_thr
    failed: dict[str, str] = {}
    infer(cfg, args.checkpoint, images, out_dir, score_thr, args.batch_size, args.device, args.allow_partial, failed)
    print(f'{len(images) - len(failed)} images: pictures in {out_dir}/vis, predictions in {out_dir}/preds')
    if broken:
        print(f'{len(broken)} cannot be read as images and are left out: {", ".join(broken)}', file=sys.stderr)
    if failed:
        print(f'{len(failed)} cannot be predicted by this model and are left out: {", ".join(failed)} (the first: '
              f'{next(iter(failed.values()))})', file=sys.stderr)
    if broken or failed:
        sys.exit(1)
