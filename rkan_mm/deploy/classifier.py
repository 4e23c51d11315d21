"""Classifiers of mmpretrain from pictures to probabilities, as one graph."""

from __future__ import annotations

from torch import Tensor, nn

from .errors import UnsupportedModelError
from .pictures import Normalize


class ClassifierGraph(nn.Module):
    """An ``ImageClassifier`` with its normalisation before it and its softmax behind it.

    Pictures (B, C, H, W), uint8, RGB or gray, as the test pipeline makes them, go in; ``scores`` (B, classes), which
    add to 1, come out.

    Args:
        model: of mmpretrain, with a head that predicts as ``ClsHead`` does.
        is_bgr: whether its pipeline gives pictures in BGR.

    Raises:
        UnsupportedModelError: it is another one.
    """

    task = 'classification'
    outputs = ('scores',)
    least_opset = 11

    def __init__(self, model: nn.Module, is_bgr: bool = True) -> None:
        from mmpretrain.models import ClsHead, ImageClassifier
        super().__init__()
        head = getattr(model, 'head', None)
        if not isinstance(model, ImageClassifier) or not isinstance(head, ClsHead) or any(
                getattr(type(head), name) is not getattr(ClsHead, name) for name in ('predict', '_get_predictions')):
            raise UnsupportedModelError(f'{type(model).__name__} with a {type(head).__name__} cannot be exported: of '
                                        'classifiers, an ImageClassifier whose head predicts as ClsHead is known.')
        self.model, self.normalize = model, Normalize(model.data_preprocessor, is_bgr)
        self.eval()

    @property
    def num_classes(self) -> int:
        return self.model.head.num_classes

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        x = self.normalize(image).to(next(self.model.parameters()).dtype)
        return (self.model.head(self.model.extract_feat(x)).float().softmax(1),)
