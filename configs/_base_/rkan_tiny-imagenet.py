"""RKAN's Tiny ImageNet recipe for any backbone of models/. RKAN used --amp."""
_base_ = ['./datasets/tiny-imagenet_160.py', './schedules/rkan-200e.py', './rkan_runtime.py']
