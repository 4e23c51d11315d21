"""An exported file in the place of the model that it was, for the config's own evaluators."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor

from rkan_mm.engine.run_error import PreflightError

from .files import Function


class ExportedModel:
    """Predicts what mm's ``test_step`` gives, from prepared pictures as a pipeline packs them.

    Args:
        function: of pictures, as `read` gives it.
        info: its metadata.
        is_bgr: whether the pipeline gives pictures in BGR.
    """

    def __init__(self, function: Function, info: dict[str, Any], is_bgr: bool = True) -> None:
        self.function, self.info, self.is_bgr = function, info, is_bgr

    def pictures(self, inputs: list[Tensor] | Tensor) -> list[np.ndarray]:
        """Each as the file takes it: (1, C, H, W), RGB or gray, on its canvas where the file has one size only.

        Raises:
            PreflightError: one is larger than that.
        """
        arrays = []
        for picture in inputs:
            array = picture.cpu().numpy().astype(np.uint8)[None]
            array = array[:, ::-1] if self.is_bgr else array
            if self.info['size']:
                width, height = self.info['size']
                if array.shape[2] > height or array.shape[3] > width:
                    raise PreflightError(f'A picture of {array.shape[3]} x {array.shape[2]} does not fit a file for '
                                         f'{width} x {height}: export with --dynamic.')
                canvas = np.empty((1, array.shape[1], height, width), np.uint8)
                canvas[:] = np.array(self.info['blank'], np.uint8)[None, :, None, None]
                canvas[:, :, :array.shape[2], :array.shape[3]] = array
                array = canvas
            arrays.append(np.ascontiguousarray(array))
        return arrays

    def test_step(self, data: dict[str, Any]) -> list[BaseDataElement]:
        """The data samples of a collated batch, with predictions."""
        samples = []
        for array, sample in zip(self.pictures(data['inputs']), data['data_samples'], strict=True):
            out = dict(zip(self.info['outputs'], map(torch.from_numpy, self.function(array)), strict=True))
            if self.info['task'] == 'classification':
                scores = out['scores'][0]
                sample.set_pred_score(scores).set_pred_label(scores.argmax(0, keepdim=True))
            else:
                sample.pred_instances = self._instances({name: value[0] for name, value in out.items()}, sample)
            samples.append(sample)
        return samples

    def _instances(self, out: dict[str, Tensor], sample: BaseDataElement) -> InstanceData:
        """Detections in the pixels of the picture before its preparation."""
        found = out['labels'] > -1
        out = {name: value[found] for name, value in out.items()}
        height, width = sample.img_shape[:2]
        boxes = torch.minimum(out['boxes'], torch.tensor([width, height, width, height]))  # the canvas may be larger
        boxes = boxes / torch.tensor(sample.scale_factor).repeat(2)
        instances = InstanceData(bboxes=boxes, scores=out['scores'], labels=out['labels'])
        if 'masks' in out:
            from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
            height, width = sample.ori_shape[:2]
            instances.masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
            for i, (mask, box) in enumerate(zip(out['masks'], boxes, strict=True)):
                pasted, (rows, columns) = _do_paste_mask(mask[None, None], box[None], height, width, skip_empty=True)
                instances.masks[i, rows, columns] = pasted[0] >= self.info['mask_threshold']
        return instances
