"""CIFAR-10 at 128 px as RKAN trains on it (arXiv 2410.05500), as CIFAR-100.

mmpretrain downloads the data set (163 MiB) where it is not there.
"""
_base_ = './cifar100_128.py'
data_root = 'data/cifar10/'
data_hint = ('Get it with: wget -P data/cifar10 https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz && '
             'tar -C data/cifar10 -xf data/cifar10/cifar-10-python.tar.gz')
data_preprocessor = dict(
    num_classes=10, mean=[125.307, 122.961, 113.8575], std=[51.5865, 50.847, 51.255])
dataset = dict(type='CIFAR10', data_root=data_root)
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
