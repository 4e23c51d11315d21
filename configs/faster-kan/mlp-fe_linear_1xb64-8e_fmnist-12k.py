"""The MLP of the report: a linear layer behind the larger feature extractor."""
_base_ = '../_base_/faster-kan_fmnist-12k.py'
model = dict(backbone=dict(arch='mlp'))
