"""Caltech-256 at 224 px in RKAN's Food-101 recipe, with a random but fixed split of 80 and 20 %.

The reference tests on augmented pictures; here the test split has the transforms of a test.
"""
_base_ = './food101_224.py'
data_root = 'data/256_ObjectCategories/'
data_hint = ('Get it with: wget -P data https://data.caltech.edu/records/nyy15-4j048/files/256_ObjectCategories.tar && '
             'tar -C data -xf data/256_ObjectCategories.tar')
data_preprocessor = dict(num_classes=257)
dataset = dict(type='rkan_mm.Caltech256', data_root=data_root)
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
