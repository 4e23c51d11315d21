"""RKAN (Residual Kolmogorov-Arnold Network) and KAN convolutions for MMDetection and MMPretrain.

Importing this package registers its models, hooks and data sets; it imports neither mmdet nor mmpretrain.
"""

__version__ = '0.2.0'

from rkan_mm import datasets, engine, models  # noqa: F401
from rkan_mm.hub import register_when_imported

register_when_imported()
