"""Metrics. They subclass mmdet's, so this package is imported when a config names one, not with rkan_mm."""

from .faster_coco_metric import FasterCocoMetric

__all__ = ['FasterCocoMetric']
