"""DenseNet-121. As RKAN's, it has no ReLU behind the last norm."""
_base_ = './classifier.py'
model = dict(
    backbone=dict(
        type='rkan_mm.PluggedBackbone',
        backbone=dict(type='DenseNet', arch='121'),
        replace={'transitions.3.1': dict(type='torch.nn.Identity')}),
    head=dict(in_channels=1024))
