"""Where a model looks: Grad-CAM and Eigen-CAM of classifiers and of a detector's boxes, by the package grad-cam."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rkan_mm.models import RKANet
from rkan_mm.models.backbones.bridged_stage import feature_map, token_size

from .comparison import LEAST_IOU, overlaps, plain_boxes
from .functions import unwrap
from .missing import require
from .swap import at_rest


class _LostError(Exception):
    """The box is not among the predictions."""


class _CutError(Exception):
    """No gradient leads from the score to the layer."""


class _Undetached(TorchFunctionMode):
    """Meanwhile ``Tensor.detach`` gives the tensor itself: mmdet's dense heads detach what they predict from."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is Tensor.detach:
            return args[0]
        if func is Tensor.__deepcopy__:  # YOLACT copies what it has found, which torch refuses with gradients
            return args[0].clone()
        if func is Tensor.numpy:  # which has no gradients
            args = (args[0].data, *args[1:])
        return func(*args, **(kwargs or {}))


def is_detector(model: nn.Module) -> bool:
    """Whether a model is one of mmdet's, whose predictions are instances; mmdet is not imported for it."""
    models = sys.modules.get('mmdet.models')
    return models is not None and isinstance(model, models.BaseDetector)


class Scores(nn.Module):
    """A model of mm as grad-cam calls models: from normalised images to what it says of each.

    Args:
        model: classifier or detector.
        data_samples: of the images, as the model's preprocessor gives them.
        undetached: whether gradients pass where the model detaches.
    """

    def __init__(self, model: nn.Module, data_samples: list, undetached: bool = False) -> None:
        super().__init__()
        self.model, self.data_samples, self.undetached = model, data_samples, undetached

    def forward(self, x: Tensor) -> Any:
        """(B, 3, H, W) -> logits (B, classes), or instances of each image."""
        if not is_detector(self.model):
            return self.model(x, mode='tensor')
        with _Undetached() if self.undetached else contextlib.nullcontext():
            return [result.get('pred_instances') for result in
                    self.model(x, copy.deepcopy(self.data_samples), mode='predict')]


class ClassTarget:
    """The logit of a class."""

    def __init__(self, label: int) -> None:
        self.label = label

    def __call__(self, logits: Tensor) -> Tensor:
        return logits[self.label]


class BoxTarget:
    """The score of the prediction that covers a box best, among those of its class.

    Args:
        box: x1, y1, x2, y2 in pixels of the image as it is on the disk.
        label: class.
    """

    def __init__(self, box: Tensor, label: int) -> None:
        self.box, self.label = box, label

    def __call__(self, found: InstanceData) -> Tensor:
        same = (found.labels == self.label).nonzero().flatten()
        boxes = plain_boxes(found)[same].detach()
        overlap = overlaps(boxes, self.box[None].to(boxes)).flatten()
        if not len(same) or overlap.max() < LEAST_IOU:
            raise _LostError
        score = found.scores[same[overlap.argmax()]]
        if not score.requires_grad:
            raise _CutError
        return score


def cam_layer(model: nn.Module, run: Callable[[], Any], name: str | None = None) -> tuple[str, nn.Module]:
    """The layer whose features are looked at: of a RKANet its last stage with a block, else the last with a map.

    Args:
        model: of mm.
        run: gives it an image.
        name: of another module.

    Raises:
        ValueError: no such module, or none gives feature maps.
    """
    model = unwrap(model)
    modules = dict(model.named_modules())
    if name is not None:
        if name not in modules:
            raise ValueError(f'cam_layer: no module {name!r} in {type(model).__name__}; it has '
                             f'{", ".join(name for name, _ in model.named_children())}')
        return name, modules[name]
    for prefix, module in modules.items():
        if isinstance(module, RKANet):
            order = [name for name, _ in module.backbone.named_modules()]
            stage = max((bridge.last for bridge in module.bridges.values()), key=order.index)
            name = f'{prefix}.backbone.{stage}'.lstrip('.')
            return name, modules[name]
    seen = []
    inside = {name: module for name, module in modules.items() if name.startswith('backbone.')} or modules
    handles = [module.register_forward_hook(
        lambda module, args, out, name=name: seen.append(name) if isinstance(out, Tensor) and out.dim() == 4 and
        min(out.shape[2:]) > 1 else None) for name, module in inside.items()]
    try:
        with at_rest(model), torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise ValueError(f'cam_layer: no module of {type(model).__name__} gives feature maps (B, C, H, W)')
    return seen[-1], modules[seen[-1]]


class _Maps:
    """Makes maps of what a stage gives, tokens with their height and width among them."""

    def __init__(self, layer: nn.Module) -> None:
        self.args: tuple = ()
        self.handle = layer.register_forward_hook(self._note)

    def _note(self, module: nn.Module, args: tuple, out: Any) -> None:
        self.args = args

    def __call__(self, out: Tensor) -> Tensor:
        return feature_map(out, token_size(self.args, {}))


def activation_map(model: nn.Module, layer: nn.Module, x: Tensor, data_samples: list,
                   target: Callable | None) -> np.ndarray | None:
    """One map over an image, 0 to 1. The model is left as it was.

    Args:
        model: classifier or detector of mm.
        layer: whose features are weighted.
        x: one image as the model's preprocessor gives it, (1, 3, H, W).
        data_samples: with it.
        target: `ClassTarget` or `BoxTarget` for Grad-CAM (arXiv 1610.02391); None for Eigen-CAM (arXiv 2008.00299).

    Returns:
        (H, W); None where the box of a target is not among the predictions, or nothing depends on the layer.

    Raises:
        PreflightError: the package grad-cam is missing.

    Example:
        >>> data = model.data_preprocessor(pseudo_collate([dataset[0]]))
        >>> activation_map(model, model.backbone.layer4, data['inputs'], data['data_samples'], ClassTarget(3)).shape
        (224, 224)
    """
    package = require('pytorch_grad_cam', 'A class activation map')
    make = package.GradCAM if target else _upright(package)
    for undetached in (False, True):
        try:
            found = _map(make, unwrap(model), layer, x, Scores(unwrap(model), data_samples, undetached), target)
            return found if np.isfinite(found).all() else None
        except _LostError:
            return None
        except _CutError:
            continue
    return None


def _map(make: type, model: nn.Module, layer: nn.Module, x: Tensor, scores: Scores,
         target: Callable | None) -> np.ndarray:
    maps, run = _Maps(layer), None
    try:
        with at_rest(model), torch.set_grad_enabled(target is not None):
            run = make(scores, [layer], maps)
            image = x.detach().clone().requires_grad_(target is not None)
            try:
                return run(image, [target] if target else [lambda output: 0])[0]
            except AttributeError as error:
                if target and not run.activations_and_grads.gradients:  # which grad-cam does not look for
                    raise _CutError from error
                raise
    finally:
        maps.handle.remove()
        if run is not None:
            run.activations_and_grads.release()


def _upright(package) -> type:
    class UprightEigenCAM(package.EigenCAM):
        """The sign of a principal component is arbitrary: here it is that of the features' size."""

        def get_cam_image(self, input_tensor, target_layer, targets, activations, grads, eigen_smooth):
            found = super().get_cam_image(input_tensor, target_layer, targets, activations, grads, eigen_smooth)
            size = np.square(activations).sum(1)
            size = size - size.mean((1, 2), keepdims=True)
            sign = np.sign((found * size).sum((1, 2), keepdims=True))
            return found * np.where(sign == 0, 1, sign)

    return UprightEigenCAM
