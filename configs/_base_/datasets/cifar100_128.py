"""CIFAR-100 at 128 px as RKAN trains on it (arXiv 2410.05500): resize, flip, RandAugment(2, 9), by torchvision.

mmpretrain downloads the data set (161 MiB) where it is not there.
"""
data_root = 'data/cifar100/'
data_hint = ('Get it with: wget -P data/cifar100 https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz && '
             'tar -C data/cifar100 -xf data/cifar100/cifar-100-python.tar.gz')
data_preprocessor = dict(  # the images are RGB
    num_classes=100, mean=[129.3105, 124.1085, 112.404], std=[68.2125, 65.4075, 70.4055], to_rgb=False)
resize = dict(type='torchvision/Resize', size=(128, 128), interpolation='bicubic')
train_pipeline = [
    dict(type='NumpyToPIL', to_rgb=False),
    resize,
    dict(type='torchvision/RandomHorizontalFlip'),
    dict(type='torchvision/RandAugment', num_ops=2, magnitude=9),
    dict(type='PILToNumpy', to_bgr=False),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='NumpyToPIL', to_rgb=False),
    resize,
    dict(type='PILToNumpy', to_bgr=False),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    dataset=dict(type='CIFAR100', data_root=data_root, split='train', pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    dataset=dict(type='CIFAR100', data_root=data_root, split='test', pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
