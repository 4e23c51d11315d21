"""RKAN's CIFAR-10 recipe for any backbone of models/. RKAN used --amp."""
_base_ = ['./datasets/cifar10_128.py', './schedules/rkan-200e.py', './rkan_runtime.py']
