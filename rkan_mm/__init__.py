"""RKAN (Residual Kolmogorov-Arnold Network) and KAN convolutions for MMDetection and MMPretrain.

Importing this package registers its models, hooks and data sets; it imports neither mmdet nor mmpretrain. `fuse`, and
`formula`, which needs the extra ``rkan_mm[inspect]``, are imported at their first use.
"""

__version__ = '0.2.0'

from rkan_mm import datasets, engine, models  # noqa: F401
from rkan_mm.hub import register_when_imported

register_when_imported()


def __getattr__(name: str):
    if name == 'formula':
        from rkan_mm.inspection import formula
        return formula
    if name == 'fuse':
        from rkan_mm.deploy.fusing import fuse
        return fuse
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
