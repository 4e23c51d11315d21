"""FasterKAN behind its own feature extractor."""
_base_ = '../_base_/faster-kan_fmnist-12k.py'
model = dict(head=dict(type='KANLinearClsHead', mid_channels=(128, 64, 32, 16), fc_cfg={{_base_.faster_kan}}))
