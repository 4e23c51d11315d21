"""RKAN (Residual Kolmogorov-Arnold Network) and KAN convolutions for MMDetection and MMPretrain.

Importing this package registers its models and hooks; it imports neither mmdet nor mmpretrain.
"""

__version__ = '0.1.0'

from rkan_mm import engine, models  # noqa: F401
