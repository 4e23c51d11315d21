"""Test-time augmentation. The model around a detector is a subclass of mmdet's, which is imported when one is built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from rkan_mm.registry import MODELS


@MODELS.register_module('BoxTTAModel')
def box_tta_model(**kwargs) -> nn.Module:
    """The ``DetTTAModel`` of mmdet, of whose arguments it is, also around a model that predicts masks beside boxes.

    Mmdet merges boxes alone, and stops where there are masks; here these are left out.
    """
    from mmdet.models import DetTTAModel

    class BoxTTAModel(DetTTAModel):
        def _merge_single_sample(self, data_samples: Sequence[Any]) -> Any:
            for sample in data_samples:
                sample.pred_instances.pop('masks', None)
            return super()._merge_single_sample(data_samples)

    return BoxTTAModel(**kwargs)
