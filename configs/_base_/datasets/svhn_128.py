"""SVHN at 128 px as RKAN trains on it (arXiv 2410.05500), as CIFAR-100 but for the flip: digits are not flipped.

It is downloaded (train and test, 235 MiB) where it is not there.
"""
_base_ = './cifar100_128.py'
data_root = 'data/svhn/'
data_hint = ('Get it with: wget -P data/svhn http://ufldl.stanford.edu/housenumbers/train_32x32.mat && '
             'wget -P data/svhn http://ufldl.stanford.edu/housenumbers/test_32x32.mat')
data_preprocessor = dict(
    num_classes=10, mean=[111.6135, 113.169, 120.564], std=[50.49, 51.255, 50.235])
train_pipeline = [
    dict(type='NumpyToPIL', to_rgb=False),
    dict(type='torchvision/Resize', size=(128, 128), interpolation='bicubic'),
    dict(type='torchvision/RandAugment', num_ops=2, magnitude=9),
    dict(type='PILToNumpy', to_bgr=False),
    dict(type='PackInputs'),
]
dataset = dict(type='rkan_mm.SVHN', data_root=data_root)
train_dataloader = dict(dataset=dict(**dataset, pipeline=train_pipeline))
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
