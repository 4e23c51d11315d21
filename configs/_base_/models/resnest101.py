"""ResNeSt-101. As RKAN's, it has the stem and the shortcuts of a plain ResNet."""
_base_ = './classifier.py'
stem = dict(
    type='ConvModule', in_channels=3, out_channels=64, kernel_size=7, stride=2, padding=3, norm_cfg=dict(type='BN'))
every_second = dict(type='torch.nn.MaxPool2d', kernel_size=1, stride=2)
model = dict(
    backbone=dict(
        type='rkan_mm.PluggedBackbone',
        backbone=dict(type='ResNeSt', depth=101, avg_down_stride=False),
        replace={
            'stem': stem,
            'layer2.0.downsample.0': every_second,
            'layer3.0.downsample.0': every_second,
            'layer4.0.downsample.0': every_second
        }))
