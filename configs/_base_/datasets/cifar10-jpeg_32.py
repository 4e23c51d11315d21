"""JPEG copies of CIFAR-10, kept in memory: 4,500 of each class to learn, 500 to choose by, the official test set.

The copies are lossy: figures are not those of CIFAR-10 itself.
"""
data_root = 'data/cifar10-jpeg/'
data_hint = ('JPEG copies of the 60,000 pictures of CIFAR-10, as {train,test}/<class>/NNNN.jpg, e.g. by: '
             'python -m zipfile -e cifar10-jpeg.zip data/cifar10-jpeg')
data_fingerprints = dict(train='f81e64fa39bf', val='e8a7ce6aba90', test='b0ea19f5338a')
data_preprocessor = dict(num_classes=10, mean=[125.307, 122.961, 113.8575], std=[51.5865, 50.847, 51.255], to_rgb=True)
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
official_train = dict(type='CustomDataset', data_root=data_root, data_prefix='train', pipeline=pipeline)
train_dataloader = dict(
    batch_size=128,
    num_workers=0,
    dataset=dict(type='CachedDataset', dataset=dict(type='BalancedSubset', per_class=4500, dataset=official_train)),
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='keep_batch'))
val_dataloader = dict(
    batch_size=500,
    num_workers=0,
    dataset=dict(
        type='CachedDataset',
        dataset=dict(
            type='BalancedSubset', per_class=500, offset=4500, dataset=dict(official_train, test_mode=True))),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='keep_batch'))
test_dataloader = dict(
    batch_size=500,
    num_workers=0,
    dataset=dict(
        type='CachedDataset',
        dataset=dict(type='CustomDataset', data_root=data_root, data_prefix='test', test_mode=True, pipeline=pipeline)),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='keep_batch'))
val_evaluator = dict(type='Accuracy', topk=1)
test_evaluator = val_evaluator
