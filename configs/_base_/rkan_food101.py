"""RKAN's Food-101 recipe for any backbone of models/. RKAN used --amp."""
_base_ = ['./datasets/food101_224.py', './schedules/rkan-200e.py', './rkan_runtime.py']
