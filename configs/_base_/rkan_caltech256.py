"""RKAN's Caltech-256 recipe for any backbone of models/. RKAN used --amp."""
_base_ = ['./datasets/caltech256_224.py', './schedules/rkan-200e.py', './rkan_runtime.py']
