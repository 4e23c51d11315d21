"""Figures of functions, grids and blocks, each from a layer or a model to matplotlib."""

from .activation import draw_activation_maps, draw_receptive_fields
from .branch import draw_branch
from .changes import draw_changes
from .functions import draw_functions
from .gallery import draw_gallery
from .grids import draw_grid
from .importance import draw_importance, draw_pruning
from .render import rendered

__all__ = ['draw_activation_maps', 'draw_branch', 'draw_changes', 'draw_functions', 'draw_gallery', 'draw_grid',
           'draw_importance', 'draw_pruning', 'draw_receptive_fields',
           'rendered']
