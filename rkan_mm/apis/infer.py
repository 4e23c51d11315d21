"""Predictions on pictures, drawn and as json: the command line of tools/infer.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mmcv
import mmengine
from mmengine.config import Config, DictAction

from rkan_mm.engine.safe_loading import safe_loading
from rkan_mm.preflight import PreflightError, check_checkpoint
from rkan_mm.preflight.checks import state_dict_in
from rkan_mm.preflight.weights import check_whole, read_anywhere, warn_in_red

from .command_line import command_line
from .runner import add_allow_partial, load_config

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm')


def list_images(inputs: Sequence[str]) -> list[str]:
    """Paths of images; a folder stands for those in it, not below.

    Raises:
        PreflightError: something is not there or not an image, a folder has none, or two have one name.
    """
    images = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            inside = sorted(child for child in path.iterdir() if child.suffix.lower() in SUFFIXES)
            if not inside:
                raise PreflightError(f'Folder {name!r} has no image ({", ".join(SUFFIXES)}).')
            images += inside
        elif path.is_file():
            images.append(path)
        else:
            raise PreflightError(f'Image {name!r} does not exist.')
    names = {}
    for image in images:
        if mmcv.imread(str(image)) is None:
            raise PreflightError(f'Image {str(image)!r} cannot be read as one.')
        other = names.setdefault(image.stem, image)
        if other != image:
            raise PreflightError(f'Results are named after their images, and {str(other)!r} and {str(image)!r} have '
                                 'one name: give them in two runs.')
    return [str(image) for image in images]


@safe_loading()
def infer(cfg: Config, checkpoint: str, images: Sequence[str], out_dir: str, score_thr: float = 0.3,
          batch_size: int = 1, device: str | None = None, allow_partial: bool = False) -> list[dict]:
    """Predict, and write ``out_dir/vis/<image>`` and ``out_dir/preds/<image>.json``.

    Args:
        cfg: config of mmdet or mmpretrain, which choose the inferencer.
        checkpoint: path or address.
        images: paths.
        out_dir: folder for the results.
        score_thr: detections below it are not drawn; the json has all.
        batch_size: images at a time.
        device: None takes a GPU where there is one.
        allow_partial: predict, with a warning in red, where the checkpoint is of another model in part.

    Returns:
        What is in each json: of mmdet ``bboxes`` (x1, y1, x2, y2 in pixels), ``scores``, ``labels`` and ``masks``
        (RLE); of mmpretrain ``pred_scores``, ``pred_label``, ``pred_score`` and, where the checkpoint names its
        classes, ``pred_class``.

    Raises:
        PreflightError: the checkpoint cannot be read, or is of another model, see `check_whole`.
    """
    weights = state_dict_in(read_anywhere(checkpoint), checkpoint)
    if cfg.get('default_scope') == 'mmpretrain':
        from mmpretrain import ImageClassificationInferencer
        inferencer = ImageClassificationInferencer(cfg, pretrained=checkpoint, device=device)
        warning = check_whole(inferencer.model, weights, checkpoint, allow_partial)
        Path(out_dir).mkdir(parents=True, exist_ok=True)
        results = inferencer(list(images), batch_size=batch_size, show_dir=str(Path(out_dir) / 'vis'))
        for image, result in zip(images, results, strict=True):
            result['pred_scores'] = result['pred_scores'].tolist()
            mmengine.dump(result, str(Path(out_dir) / 'preds' / f'{Path(image).stem}.json'))
        warn_in_red(warning)
        return results
    from mmdet.apis import DetInferencer
    inferencer = DetInferencer(cfg, weights=checkpoint, device=device)
    warning = check_whole(inferencer.model, weights, checkpoint, allow_partial)
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    results = inferencer(list(images), batch_size=batch_size, pred_score_thr=score_thr, out_dir=out_dir,
                         no_save_pred=False)['predictions']
    warn_in_red(warning)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of tools/infer.py."""
    parser = command_line('Predict on pictures with a model of mmdet or mmpretrain',
                          'configs/mask-rcnn_rkanet50_fpn_1x_coco.py epoch_12.pth pictures/')
    parser.add_argument('config', help='config file of mmdet or mmpretrain, or the name of one of ours')
    parser.add_argument('checkpoint')
    parser.add_argument('image', nargs='+', help='image, or a folder of images')
    parser.add_argument('--out-dir', help='for vis/ and preds/ (default: work_dirs/<config>/infer)')
    parser.add_argument('--score-thr', type=float, default=0.3, help='detections below it are not drawn')
    parser.add_argument('--batch-size', type=int, default=1)
    parser.add_argument('--device', help='e.g. cpu or cuda:0 (default: a GPU where there is one)')
    add_allow_partial(parser)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', default={})
    args = parser.parse_args(argv)
    cfg = load_config(args.config, args.cfg_options)
    check_checkpoint(args.checkpoint)
    images = list_images(args.image)
    out_dir = args.out_dir or str(Path(cfg.work_dir) / 'infer')
    infer(cfg, args.checkpoint, images, out_dir, args.score_thr, args.batch_size, args.device, args.allow_partial)
    print(f'{len(images)} images: pictures in {out_dir}/vis, predictions in {out_dir}/preds')
