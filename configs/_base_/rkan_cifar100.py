"""RKAN's CIFAR-100 recipe for any backbone of models/. RKAN used --amp."""
_base_ = ['./datasets/cifar100_128.py', './schedules/rkan-200e.py', './rkan_runtime.py']
