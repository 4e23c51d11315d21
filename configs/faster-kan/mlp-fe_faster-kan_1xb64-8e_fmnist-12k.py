"""FasterKAN behind the larger feature extractor."""
_base_ = './faster-kan-fe_faster-kan_1xb64-8e_fmnist-12k.py'
model = dict(backbone=dict(arch='mlp'))
