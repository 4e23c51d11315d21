"""Fashion-MNIST, 28 px, without augmentation, kept in memory: black is -1 and white 1.

mmpretrain downloads it (30 MiB) where it is not there; Debian has it as the package dataset-fashion-mnist.
"""
data_root = 'data/fashion_mnist/'
data_hint = ('Debian has it: `apt install dataset-fashion-mnist`, then `mkdir -p data/fashion_mnist && for f in '
             '/usr/share/datasets/fashion-mnist/*.gz; do zcat $f > data/fashion_mnist/$(basename $f .gz); done`.')
data_preprocessor = dict(num_classes=10, mean=[127.5], std=[127.5], to_rgb=False)
pipeline = [dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=128,
    num_workers=0,
    dataset=dict(
        type='CachedDataset',
        dataset=dict(type='FashionMNIST', data_root=data_root, split='train', pipeline=pipeline)),
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='keep_batch'))
val_dataloader = dict(
    batch_size=500,
    num_workers=0,
    dataset=dict(
        type='CachedDataset',
        dataset=dict(type='FashionMNIST', data_root=data_root, split='test', test_mode=True, pipeline=pipeline)),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='keep_batch'))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=1)
test_evaluator = val_evaluator
