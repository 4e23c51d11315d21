"""The schedule of adamw-6e_finetune.py for classifiers."""
_base_ = './adamw-6e_finetune.py'
train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=6, val_interval=6)
val_cfg = dict(_delete_=True)
test_cfg = dict(_delete_=True)
auto_scale_lr = dict(base_batch_size=64)
