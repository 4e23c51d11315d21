"""Detectors of mmdet from pictures to boxes, labels, scores and masks, as one graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .errors import UnsupportedModelError
from .pictures import Normalize
from .selection import CANDIDATES, rows, suppress, topk

NMS = ('type', 'iou_threshold', 'class_agnostic', 'split_thr')
NMS_DEFAULTS = dict(offset=0, score_threshold=0, max_num=-1)


class DetectorGraph(nn.Module):
    """A one-stage or two-stage detector of mmdet.

    Pictures (B, C, H, W), uint8, RGB or gray, already at the size that the test pipeline makes of them, go in; it
    normalises and pads them. Out come ``boxes`` (B, K, 4) in pixels of these pictures, ``scores`` (B, K) in descending
    order, ``labels`` (B, K), -1 behind the last detection, and of a Mask R-CNN ``masks`` (B, K, h, w): how likely the
    pixels of each box, so divided, belong to the object.

    Args:
        model: of mmdet, with a dense head that predicts as ``BaseDenseHead`` (RetinaNet, FCOS, ATSS, ...), or a
            region proposal network and a ``StandardRoIHead`` (Faster and Mask R-CNN).
        is_bgr: whether its pipeline gives pictures in BGR.

    Raises:
        UnsupportedModelError: another head, extractor or way of suppression.
    """

    task = 'detection'

    def __init__(self, model: nn.Module, is_bgr: bool = True) -> None:
        super().__init__()
        self.model = model
        self.normalize = Normalize(model.data_preprocessor, is_bgr)
        self.two_stage = getattr(model, 'roi_head', None) is not None
        self.head: Any = getattr(model, 'rpn_head' if self.two_stage else 'bbox_head', None)
        self.with_masks = self.two_stage and model.roi_head.with_mask
        _check(model, self.head, self.two_stage)
        self.outputs = ('boxes', 'labels', 'scores', *(['masks'] if self.with_masks else []))
        self.least_opset = 16 if self.two_stage else 11  # before, RoIAlign could not be aligned
        self.eval()

    @property
    def num_classes(self) -> int:
        return (self.model.roi_head.bbox_head if self.two_stage else self.head).num_classes

    @property
    def mask_threshold(self) -> float | None:
        """Above it a pixel belongs to the object."""
        return float(self.model.roi_head.test_cfg.mask_thr_binary) if self.with_masks else None

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        size = tuple(_extent(image[0, 0].transpose(0, d)[0]) for d in (1, 0))  # of the picture without its padding
        dtype = next(self.model.parameters()).dtype  # may be half; boxes and scores are float
        maps = self.model.extract_feat(self.normalize(image).to(dtype))
        if not self.two_stage:
            boxes, scores, labels = self._dense(maps, size)
            return boxes, labels, scores
        proposals, found, _ = self._dense(maps, size)
        boxes, scores, labels = self._refine(maps, proposals, found > -1, size)
        if not self.with_masks:
            return boxes, labels, scores
        return boxes, labels, scores, self._masks(maps, boxes, labels)

    def _dense(self, maps: tuple[Tensor, ...], size: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels, (B, K, ...), of a dense head; of a region proposal network, labels mean nothing."""
        head, cfg = self.head, self.head.test_cfg
        outs = [[part.float() for part in parts] for parts in head(maps)]
        priors = head.prior_generator.grid_priors([score.shape[2:] for score in outs[0]], dtype=torch.float32,
                                                  device=outs[0][0].device)
        factors = outs[2] if len(outs) > 2 else [None] * len(priors)
        threshold = -0.5 if self.two_stage else cfg.get('score_thr', 0.0)
        levels = [self._level(score, delta, factor, prior, cfg.nms_pre, threshold)
                  for score, delta, factor, prior in zip(outs[0], outs[1], factors, priors, strict=True)]
        scores, ranks, labels, deltas, priors = (torch.cat(parts, 1) for parts in zip(*levels, strict=True))
        boxes = _decode(head.bbox_coder, priors, deltas, size)
        groups = torch.zeros_like(labels) if cfg.nms.get('class_agnostic') else labels
        if self.two_stage:  # levels do not suppress each other
            groups = torch.cat([torch.full_like(level[2], i) for i, level in enumerate(levels)], 1)
        valid = ranks > -1
        least = cfg.get('min_bbox_size', -1)
        if least >= 0:
            valid = valid & (boxes[..., 2] - boxes[..., 0] > least) & (boxes[..., 3] - boxes[..., 1] > least)
        scores, kept = suppress(boxes, scores, groups, valid, size, cfg.nms.iou_threshold, cfg.max_per_img)
        found = scores > -1
        return (torch.where(found.unsqueeze(2), rows(boxes, kept), 0.0), torch.where(found, scores, -1.0),
                torch.where(found, labels.gather(1, kept), -1))

    def _level(self, score: Tensor, delta: Tensor, factor: Tensor | None, priors: Tensor, count: int,
               threshold: float) -> tuple[Tensor, ...]:
        """The best of one level: scores, what they were chosen by, labels, deltas and priors, (B, count, ...)."""
        head, batch = self.head, score.shape[0]
        classes = head.cls_out_channels
        score = _by_place(score, classes)
        # written out: onnxruntime's own sigmoid is off by up to 1e-7 and 0 below 1.5e-8; small scores order proposals
        score = 1 / (1 + (-score).exp()) if head.use_sigmoid_cls else score.softmax(-1)[..., :-1]
        classes = classes if head.use_sigmoid_cls else classes - 1
        flat = score.reshape(batch, -1)
        rank, index = topk(torch.where(flat > threshold, flat, -1.0), count)
        place, label = index // classes, index % classes
        value = rank
        if factor is not None:
            value = rank * _by_place(factor, 1).squeeze(2).sigmoid().gather(1, place)
        delta = _by_place(delta, head.bbox_coder.encode_size)
        priors = priors[place.reshape(-1)].reshape(batch, count, -1)
        return value, rank, label, rows(delta, place), priors

    def _refine(self, maps: tuple[Tensor, ...], proposals: Tensor, valid: Tensor,
                size: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels, (B, K, ...), of the second stage for proposals (B, R, 4)."""
        roi_head = self.model.roi_head
        head, cfg = roi_head.bbox_head, roi_head.test_cfg
        batch, count = proposals.shape[:2]
        rois = _rois(proposals)
        features = _extract(roi_head.bbox_roi_extractor, maps, rois)
        if roi_head.with_shared_head:
            features = roi_head.shared_head(features)
        logits, deltas = (out.float() for out in head(features))
        scores = logits.softmax(-1)[:, :-1].reshape(batch, count, head.num_classes)
        scores = torch.where((scores > cfg.score_thr) & valid.unsqueeze(2), scores, -1.0)
        most = min(CANDIDATES, self.head.test_cfg.max_per_img * head.num_classes)
        best, index = topk(scores.reshape(batch, -1), most)
        place, label = index // head.num_classes, index % head.num_classes
        if not head.reg_class_agnostic:
            deltas = deltas.reshape(batch, count * head.num_classes, -1)
            deltas = rows(deltas, index)
        else:
            deltas = rows(deltas.reshape(batch, count, -1), place)
        boxes = _decode(head.bbox_coder, rows(proposals, place), deltas, size)
        groups = torch.zeros_like(label) if cfg.nms.get('class_agnostic') else label
        scores, kept = suppress(boxes, best, groups, best > -1, size, cfg.nms.iou_threshold, cfg.max_per_img)
        found = scores > -1
        return (torch.where(found.unsqueeze(2), rows(boxes, kept), 0.0), torch.where(found, scores, -1.0),
                torch.where(found, label.gather(1, kept), -1))

    def _masks(self, maps: tuple[Tensor, ...], boxes: Tensor, labels: Tensor) -> Tensor:
        """(B, K, h, w), 0 to 1, of boxes (B, K, 4)."""
        roi_head = self.model.roi_head
        features = _extract(roi_head.mask_roi_extractor, maps, _rois(boxes))
        if roi_head.with_shared_head:
            features = roi_head.shared_head(features)
        masks = roi_head.mask_head(features).float()  # (B K, classes or 1, h, w)
        label = torch.zeros_like(labels) if roi_head.mask_head.class_agnostic else labels.clamp(min=0)
        index = label.reshape(-1, 1, 1, 1).expand(-1, -1, *masks.shape[2:])
        return masks.gather(1, index).sigmoid().reshape(*labels.shape[:2], *masks.shape[2:])


def _by_place(maps: Tensor, width: int) -> Tensor:
    """(B, C, H, W) -> (B, N, width), copied by name: of a reshape, `torch.export` asks whether a map has one pixel."""
    maps = maps.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
    return maps.view(maps.shape[0], -1, width)


def _extent(line: Tensor) -> Tensor:
    """How many elements there are, as a number that the graph computes, whatever size is traced."""
    return torch.ones_like(line, dtype=torch.float32).sum()


def _rois(boxes: Tensor) -> Tensor:
    """(B, N, 4) -> (B N, 5), the number of the image first."""
    images = torch.arange(boxes.shape[0], device=boxes.device).to(boxes.dtype)
    return torch.cat([images[:, None, None].expand(-1, boxes.shape[1], 1), boxes], 2).reshape(-1, 5)


def _decode(coder: Any, priors: Tensor, deltas: Tensor, size: tuple[Tensor, Tensor]) -> Tensor:
    """Boxes (B, N, 4) of priors and deltas (B, N, ...), clipped to the picture."""
    boxes = coder.decode(priors.flatten(0, 1), deltas.flatten(0, 1)).reshape(-1, priors.shape[1], 4)
    height, width = size
    return torch.minimum(boxes.clamp(min=0), torch.stack([width, height, width, height]))


def _extract(extractor: nn.Module, maps: tuple[Tensor, ...], rois: Tensor) -> Tensor:
    """Features (R, C, h, w) of regions (R, 5), each from the map of its level."""
    layers = extractor.roi_layers
    if len(layers) == 1:
        return _roi_align(layers[0], maps[0], rois)
    level = extractor.map_roi_levels(rois, len(layers))
    out = maps[0].new_zeros(rois.shape[0], extractor.out_channels, *layers[0].output_size)
    for i, layer in enumerate(layers):
        index = (level == i).nonzero().squeeze(1)
        out = out.index_put((index,), _roi_align(layer, maps[i], rois[index]))
    return out


def _roi_align(layer: nn.Module, features: Tensor, rois: Tensor) -> Tensor:
    """RoIAlign of mmcv by torchvision's, which exporters know."""
    from torchvision.ops import roi_align
    regions = roi_align(features.float(), rois, layer.output_size, layer.spatial_scale, layer.sampling_ratio,
                        layer.aligned)
    return regions.to(features.dtype)


def _check(model: nn.Module, head: Any, two_stage: bool) -> None:
    from mmcv.ops import RoIAlign
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    from mmdet.models.dense_heads.rpn_head import RPNHead
    from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
    from mmdet.models.roi_heads import BBoxHead, FCNMaskHead, StandardRoIHead
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

    def same(part: nn.Module | None, parent: type, *methods: str) -> None:
        """``part`` predicts as ``parent`` does."""
        if not isinstance(part, parent) or any(getattr(type(part), method) is not getattr(parent, method)
                                               for method in methods):
            raise UnsupportedModelError(
                f'{type(model).__name__} with a {type(part).__name__} cannot be exported: boxes are known of heads '
                f'that predict as {parent.__name__} does.')

    kind = TwoStageDetector if two_stage else SingleStageDetector
    if not isinstance(model, kind) or type(model).predict is not kind.predict:
        raise UnsupportedModelError(f'{type(model).__name__} cannot be exported: of detectors, those are known that '
                                    'predict as SingleStageDetector or TwoStageDetector does.')
    if two_stage:
        roi_head = model.roi_head
        same(head, RPNHead, 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process')
        same(roi_head, StandardRoIHead, 'predict', 'predict_bbox', 'predict_mask', '_bbox_forward', '_mask_forward')
        same(roi_head.bbox_head, BBoxHead, 'predict_by_feat', '_predict_by_feat_single')
        extractors = [roi_head.bbox_roi_extractor]
        if roi_head.with_mask:
            same(roi_head.mask_head, FCNMaskHead, 'predict_by_feat', '_predict_by_feat_single')
            extractors.append(roi_head.mask_roi_extractor)
        for extractor in extractors:
            same(extractor, SingleRoIExtractor, 'forward')
            if not all(isinstance(layer, RoIAlign) and layer.pool_mode == 'avg' for layer in extractor.roi_layers):
                raise UnsupportedModelError(f'{type(model).__name__} cannot be exported: of RoI layers, RoIAlign that '
                                            'averages is known.')
    else:
        same(head, BaseDenseHead, 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process')
    heads = [head, *([model.roi_head.bbox_head] if two_stage else [])]
    for part, cfg in zip(heads, (head.test_cfg, getattr(model, 'roi_head', head).test_cfg), strict=False):
        other = {key: value for key, value in cfg.nms.items() if key not in NMS and NMS_DEFAULTS.get(key) != value}
        kind = cfg.nms.get('type', 'nms')
        kind = getattr(kind, '__name__', kind)  # pure Python configs name the function itself
        refused = {
            f'suppression by {kind}, not nms': kind != 'nms',
            f'nms with {other}, of which nothing is known': bool(other),
            f'max_per_img={cfg.get("max_per_img")}, without a limit': cfg.get('max_per_img', -1) < 1,
            f'nms_pre={cfg.get("nms_pre")}, without a limit': part is head and cfg.get('nms_pre', -1) < 1,
            'boxes that may leave the picture (clip_border=False)': not getattr(part.bbox_coder, 'clip_border', True),
            'scores of its own (custom_cls_channels)': getattr(
                getattr(part, 'loss_cls', None), 'custom_cls_channels', False),
        }
        for what in (what for what, found in refused.items() if found):
            raise UnsupportedModelError(f'{type(model).__name__} cannot be exported: {type(part).__name__} has {what}.')
