"""RKANet-50-2xL on ImageNet-1k: the block on layer4 is twice as wide as its input."""
_base_ = './rkanet50_1xb128-100e_in1k.py'
model = dict(backbone=dict(block=dict(type='RKANBlock', expansion=2)))
