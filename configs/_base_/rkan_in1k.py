"""RKAN's ImageNet-1k recipe for any backbone of models/. RKAN used --amp."""
_base_ = ['./datasets/in1k_224.py', './schedules/rkan-100e.py', './rkan_runtime.py', './tta/in1k-224_flip.py']
