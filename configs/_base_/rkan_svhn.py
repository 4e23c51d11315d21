"""RKAN's SVHN recipe for any backbone of models/. RKAN used --amp."""
_base_ = ['./datasets/svhn_128.py', './schedules/rkan-200e.py', './rkan_runtime.py']
