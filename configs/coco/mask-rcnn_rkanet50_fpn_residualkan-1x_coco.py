"""RKANet-50 Mask R-CNN with what the reference does otherwise than mmdet: every level has anchors of all five sizes,
and images are normalised twice (mean 255 mu (1 + sigma) and std 255 sigma^2 do both at once).
"""
_base_ = '../mask-rcnn_rkanet50_fpn_1x_coco.py'
model = dict(
    data_preprocessor=dict(mean=[151.9966, 142.3267, 126.8243], std=[13.3725, 12.7949, 12.9094]),
    rpn_head=dict(anchor_generator=dict(scales=[32, 64, 128, 256, 512], base_sizes=[1, 1, 1, 1, 1])))
