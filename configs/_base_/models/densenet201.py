"""DenseNet-201. As RKAN's, it has no ReLU behind the last norm."""
_base_ = './densenet121.py'
model = dict(backbone=dict(backbone=dict(arch='201')), head=dict(in_channels=1920))
