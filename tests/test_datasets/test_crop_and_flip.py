"""Crops and flips of a whole batch: each image is a window of its own, padded picture, perhaps mirrored."""

import torch
from mmpretrain.models import RandomBatchAugment

from rkan_mm.datasets.crop_and_flip import CropAndFlip


def test_every_image_is_a_window_of_its_padded_self_or_of_its_mirror_image():
    torch.manual_seed(0)
    inputs, scores = torch.rand(64, 3, 5, 7), torch.eye(64)
    crops, kept = RandomBatchAugment(dict(type='CropAndFlip', padding=2))(inputs, scores)
    assert torch.equal(kept, scores)
    assert crops.shape == inputs.shape
    assert crops.is_contiguous()
    padded = torch.nn.functional.pad(inputs, [2] * 4)
    found = []
    for image, crop in zip(padded, crops, strict=True):
        windows = {(top, left, flip): (image[:, top:top + 5, left:left + 7].flip(2) if flip
                                       else image[:, top:top + 5, left:left + 7])
                   for top in range(5) for left in range(5) for flip in (False, True)}
        found += [place for place, window in windows.items() if torch.equal(window, crop)]
    assert len(found) == 64
    for axis, values in enumerate((range(5), range(5), (False, True))):
        assert {place[axis] for place in found} == set(values)


def test_without_padding_it_only_flips():
    torch.manual_seed(0)
    inputs = torch.rand(16, 1, 3, 4)
    crops, _ = CropAndFlip(padding=0)(inputs, torch.eye(16))
    flipped = [bool((crop != image).any()) for crop, image in zip(crops, inputs, strict=True)]
    assert {True, False} == set(flipped)
    for crop, image, mirrored in zip(crops, inputs, flipped, strict=True):
        assert torch.equal(crop, image.flip(2) if mirrored else image)
