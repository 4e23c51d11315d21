from .shapes import CLASSES, make_shapes
from .subset import subset_coco

__all__ = ['CLASSES', 'make_shapes', 'subset_coco']
