"""Food-101 at 224 px as RKAN trains on it (arXiv 2410.05500): as ImageNet, tested on the centre of 280 px."""
_base_ = './in1k_224.py'
data_root = 'data/food-101/'
data_hint = ('Get it with: wget -P data http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz && '
             'tar -C data -xf data/food-101.tar.gz')
data_preprocessor = dict(num_classes=101)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=280, edge='short', backend='pillow'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(type='Food101', data_root=data_root))
val_dataloader = dict(dataset=dict(type='Food101', data_root=data_root, split='test', pipeline=test_pipeline))
test_dataloader = val_dataloader
