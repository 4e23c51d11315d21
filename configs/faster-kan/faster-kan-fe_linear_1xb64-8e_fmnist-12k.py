"""A linear layer behind FasterKAN's feature extractor."""
_base_ = '../_base_/faster-kan_fmnist-12k.py'
