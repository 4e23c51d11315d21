"""RKANet-4xL: ResNet-50 with an RKAN block 4 times as wide as its input, in RKAN's ImageNet recipe."""
_base_ = './rkan-resnet50_1xb128-100e_in1k.py'
model = dict(backbone=dict(block=dict(type='RKANBlock', expansion=4)))
