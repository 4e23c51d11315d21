"""DenseNet-169 in RKAN's CIFAR-100 recipe. As RKAN's, it has no ReLU behind the last norm."""
_base_ = './_base_/rkan_cifar100.py'
model = dict(
    backbone=dict(
        type='rkan_mm.PluggedBackbone',
        backbone=dict(type='DenseNet', arch='169'),
        replace={'transitions.3.1': dict(type='torch.nn.Identity')}),
    head=dict(in_channels=1664))
