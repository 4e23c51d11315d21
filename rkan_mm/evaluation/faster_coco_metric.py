"""CocoMetric on faster-coco-eval."""

from __future__ import annotations

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
        truth = COCO(self.cocoGt.dataset)
        keys = 'image_id', 'category_id', 'score', 'bbox' if self.params.iouType == 'bbox' else 'segmentation'
        found = truth.loadRes([{key: annotation[key] for key in keys}  # a box would count in place of the mask's area
                               for annotation in self.cocoDt.dataset['annotations']])
        fast = COCOeval_faster(truth, found, self.params.iouType)
        for name in ('imgIds', 'catIds', 'iouThrs', 'recThrs', 'maxDets', 'areaRng', 'areaRngLbl', 'useCats'):
            setattr(fast.params, name, getattr(self.params, name))
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
