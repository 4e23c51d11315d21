"""CocoMetric on faster-coco-eval."""

from __future__ import annotations

from collections.abc import Iterable
from unittest import mock

import numpy as np
from mmdet.evaluation.metrics import CocoMetric, coco_metric
from pycocotools.cocoeval import COCOeval

from rkan_mm.preflight import PreflightError
from rkan_mm.registry import METRICS


class FasterCOCOeval(COCOeval):
    """Evaluation of pycocotools with matching and curves by faster-coco-eval; the summary stays pycocotools'."""

    def evaluate(self) -> None:
        from faster_coco_eval import COCO, COCOeval_faster
        asked, places = self.params, {}
        asked.maxDets = sorted(asked.maxDets)
        for name in ('imgIds', 'catIds'):
            setattr(asked, name, np.unique(getattr(asked, name)).tolist())
            places[name] = {key: number for number, key in enumerate(getattr(asked, name), 1)}
        images, categories = places.values()

        def numbered(annotations: Iterable[dict], *keys: str) -> list[dict]:
            """What is counted, with whole numbers for ids; pycocotools counts what matches id 0 as missed."""
            return [{**{key: each[key] for key in keys}, 'iscrowd': each.get('iscrowd', 0),
                     'id': number if each['id'] else 0, 'image_id': images[each['image_id']],
                     'category_id': categories[each['category_id']]}
                    for number, each in enumerate(annotations, 1)
                    if each['image_id'] in images and each['category_id'] in categories]

        shape = 'bbox' if asked.iouType == 'bbox' else 'segmentation'
        truth = COCO(dict(images=[{**self.cocoGt.imgs[key], 'id': number} for key, number in images.items()],
                          annotations=numbered(self.cocoGt.dataset.get('annotations', []), 'area', 'bbox', shape),
                          categories=[dict(id=number) for number in categories.values()]))
        # a box would count in place of the mask's area
        found = truth.loadRes(numbered(self.cocoDt.dataset['annotations'], 'score', shape))
        fast = COCOeval_faster(truth, found, asked.iouType)
        for name in ('iouThrs', 'recThrs', 'maxDets', 'areaRng', 'areaRngLbl', 'useCats'):
            setattr(fast.params, name, getattr(asked, name))
        fast.params.imgIds, fast.params.catIds = [*images.values()], [*categories.values()]
        fast.evaluate()
        fast.accumulate()
        params = fast.params
        thresholds, *others = (len(each) for each in (
            params.iouThrs, params.catIds if params.useCats else [-1], params.areaRng, params.maxDets))
        self.eval = dict(params=self.params, counts=[thresholds, len(params.recThrs), *others],
                         precision=np.reshape(fast.eval['precision'], (thresholds, len(params.recThrs), *others)),
                         recall=np.reshape(fast.eval['recall'], (thresholds, *others)))

    def accumulate(self, p=None) -> None:
        """`evaluate` has done it."""


@METRICS.register_module()
class FasterCocoMetric(CocoMetric):
    """:class:`mmdet.CocoMetric`, with its arguments and figures, by faster-coco-eval in place of pycocotools.

    Raises:
        PreflightError: faster-coco-eval is not installed.
    """

    def __init__(self, *args, **kwargs) -> None:
        try:
            import faster_coco_eval  # noqa: F401
        except ImportError as error:
            raise PreflightError('FasterCocoMetric needs the package faster-coco-eval: pip install faster-coco-eval, '
                                 'or use CocoMetric, which gives the same figures.') from error
        super().__init__(*args, **kwargs)

    def compute_metrics(self, results: list) -> dict[str, float]:
        with mock.patch.object(coco_metric, 'COCOeval', FasterCOCOeval):  # mmdet has no argument for it
            return super().compute_metrics(results)
