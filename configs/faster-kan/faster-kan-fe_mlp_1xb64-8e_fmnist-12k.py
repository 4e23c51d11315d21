"""An MLP with as many parameters as FasterKAN's head behind its feature extractor."""
_base_ = '../_base_/faster-kan_fmnist-12k.py'
model = dict(head=dict(type='StackedLinearClsHead', mid_channels=[1312]))
