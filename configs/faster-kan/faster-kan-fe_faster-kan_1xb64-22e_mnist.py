"""FasterKAN behind its own feature extractor, on all of MNIST."""
_base_ = './faster-kan-fe_faster-kan_1xb64-8e_fmnist-12k.py'
mnist = dict(type='MNIST', data_root='data/mnist/')
train_dataloader = dict(dataset=dict(per_class=4800, dataset=mnist))
val_dataloader = dict(dataset=dict(dataset=dict(offset=4800, dataset=mnist)))
test_dataloader = dict(dataset=dict(dataset=mnist))
train_cfg = dict(max_epochs=22)
