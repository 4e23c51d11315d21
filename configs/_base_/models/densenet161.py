"""DenseNet-161. As RKAN's, it has no ReLU behind the last norm."""
_base_ = './densenet121.py'
model = dict(backbone=dict(backbone=dict(arch='161')), head=dict(in_channels=2208))
