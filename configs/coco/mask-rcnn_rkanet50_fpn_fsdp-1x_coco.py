"""mask-rcnn_rkanet50_fpn_1x_coco with everything that training keeps of the weights sharded over the GPUs (FSDP)."""
_base_ = ['../mask-rcnn_rkanet50_fpn_1x_coco.py', '../_base_/fsdp.py']
