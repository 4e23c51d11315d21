"""A tenth of the JPEG copies of CIFAR-10, 450 of each class, enlarged to 64 px; choice and test as for the whole."""
_base_ = './cifar10-jpeg_32.py'
data_fingerprints = dict(train='e5facda8f105')
data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3)
pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=64), dict(type='PackInputs')]
train_dataloader = dict(batch_size=64, dataset=dict(dataset=dict(per_class=450, dataset=dict(pipeline=pipeline))))
val_dataloader = dict(batch_size=100, dataset=dict(dataset=dict(dataset=dict(pipeline=pipeline))))
test_dataloader = dict(batch_size=100, dataset=dict(dataset=dict(pipeline=pipeline)))
