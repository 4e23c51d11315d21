from .functions import draw_functions
from .gallery import draw_gallery

__all__ = ['draw_functions', 'draw_gallery']
