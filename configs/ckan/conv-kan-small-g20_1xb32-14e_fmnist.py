"""Conv & KAN (Small) of Convolutional KANs, grid size 20."""
_base_ = './conv-kan-small-g10_1xb32-11e_fmnist.py'
model = dict(head=dict(fc_cfg=dict(basis=dict(grid_size=20))))
train_cfg = dict(max_epochs=14)
