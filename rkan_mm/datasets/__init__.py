from .classification import caltech256, svhn, tiny_imagenet
from .shapes import CLASSES, make_shapes
from .subset import subset_coco

__all__ = ['CLASSES', 'caltech256', 'make_shapes', 'subset_coco', 'svhn', 'tiny_imagenet']
