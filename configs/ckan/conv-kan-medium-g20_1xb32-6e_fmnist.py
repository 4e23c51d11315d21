"""Conv & KAN (Medium) of Convolutional KANs, grid size 20."""
_base_ = './conv-kan-medium-g10_1xb128-13e_fmnist.py'
model = dict(head=dict(fc_cfg=dict(basis=dict(grid_size=20))))
train_dataloader = dict(batch_size=32)
auto_scale_lr = dict(base_batch_size=32)
train_cfg = dict(max_epochs=6)
