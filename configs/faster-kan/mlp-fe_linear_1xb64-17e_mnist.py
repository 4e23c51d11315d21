"""The MLP of the report, on 4,800 images a class of MNIST; the lr follows 600 others a class."""
_base_ = './mlp-fe_linear_1xb64-8e_fmnist-12k.py'
data_root = 'data/mnist/'
data_hint = ('Get train-{images-idx3,labels-idx1}-ubyte.gz and t10k-{images-idx3,labels-idx1}-ubyte.gz, e.g. from '
             'https://ossci-datasets.s3.amazonaws.com/mnist/, and unpack them with gunzip in data/mnist/.')
mnist = dict(type='MNIST', data_root=data_root)
train_dataloader = dict(dataset=dict(per_class=4800, dataset=mnist))
val_dataloader = dict(dataset=dict(dataset=dict(offset=4800, dataset=mnist)))
test_dataloader = dict(dataset=dict(dataset=mnist))
train_cfg = dict(max_epochs=17)
