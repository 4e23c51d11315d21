"""Fashion-MNIST cut down for slow models: 1,200 images a class to train on, 600 others to validate, the whole test set.

Augmented as FasterKAN does it: turned by up to 10 degrees, moved by up to a tenth, in half of the images a part erased.
"""
_base_ = './fmnist_28.py'
train_set = dict(type='FashionMNIST', data_root={{_base_.data_root}}, split='train')
train_pipeline = [
    dict(type='NumpyToPIL'),
    dict(type='torchvision/RandomAffine', degrees=10, translate=(0.1, 0.1)),
    dict(type='torchvision/PILToTensor'),
    dict(type='torchvision/RandomErasing', p=0.5, scale=(0.02, 0.33)),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    _delete_=True,
    batch_size=64,
    num_workers=0,
    dataset=dict(type='BalancedSubset', per_class=1200, dataset=dict(pipeline=train_pipeline, **train_set)),
    sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(dataset=dict(dataset=dict(
    _delete_=True, type='BalancedSubset', per_class=600, offset=1200,
    dataset=dict(pipeline={{_base_.pipeline}}, **train_set))))
test_dataloader = {{_base_.test_dataloader}}
