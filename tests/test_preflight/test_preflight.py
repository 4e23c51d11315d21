import copy
import re
import urllib.error
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.datasets import CrowdHumanDataset
from mmengine.config import Config
from torch import nn

from rkan_mm.apis import runner
from rkan_mm.datasets.shapes import make_shapes
from rkan_mm.models import RKANet
from rkan_mm.preflight import PreflightError, check, check_checkpoint, check_fit, load_weights
from rkan_mm.preflight.building import building

SHAPES = 'configs/mask-rcnn_rkanet18_fpn_shapes.py'


@pytest.fixture
def cfg(root, tmp_path):
    make_shapes(tmp_path / 'shapes', 1, 1)
    return runner.load_config(str(root / SHAPES), dict(data_root=str(tmp_path / 'shapes')))


@pytest.fixture
def offline(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError('no network')

    monkeypatch.setattr('urllib.request.urlopen', refuse)
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    return tmp_path / 'hub' / 'checkpoints'


def test_a_whole_config_passes(cfg):
    check(cfg, training=True)
    check(cfg, training=False)


@pytest.mark.parametrize(('launcher', 'processes', 'told'), [('none', '2', True), ('pytorch', '2', False),
                                                             ('none', '1', False)])
def test_torchrun_without_a_launcher(cfg, monkeypatch, capsys, launcher, processes, told):
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setenv('WORLD_SIZE', processes)
    cfg.launcher = launcher
    check(cfg, training=False)
    assert ('torchrun has begun 2 processes, and --launcher is none' in capsys.readouterr().out) is told


def test_a_plugin_may_have_a_postfix(cfg):
    cfg.model.backbone = dict(type='rkan_mm.PluggedBackbone', backbone=dict(type='ResNet', depth=18), plugins=[
        dict(cfg=dict(type='rkan_mm.ECA', postfix='_1'))])
    check(cfg, training=True)
    cfg.model.backbone.plugins[0].cfg.prefix = '_1'
    with pytest.raises(PreflightError, match=r'plugins\[0\].cfg: ECA has no argument prefix'):
        check(cfg, training=True)


def test_missing_data_root_says_how_to_get_it(root):
    cfg = runner.load_config(str(root / SHAPES), dict(data_root='nowhere/shapes'))
    with pytest.raises(PreflightError, match="CocoDataset: data root 'nowhere/shapes' does not exist. Make it with: "
                                             'python tools/make_shapes.py'):
        check(cfg, training=True)


@pytest.mark.parametrize(('config', 'message'), [
    ('mask-rcnn_rkanet50_fpn_1x_coco.py', "data root 'data/coco' does not exist. Get COCO 2017 .* --cfg-options"),
    ('imagenet/rkan-resnet50_1xb128-100e_in1k.py',
     "ImageNet: data root 'data/imagenet' does not exist. Get ILSVRC 2012"),
])
def test_published_configs_say_where_their_data_is(root, monkeypatch, tmp_path, config, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PreflightError, match=message):
        check(runner.load_config(str(root / 'configs' / config)), training=True)


@pytest.mark.parametrize(('path', 'what'), [
    ('annotations/train.json', 'CocoDataset: annotation file'), ('train', 'CocoDataset: image folder'),
    ('annotations/val.json', 'CocoDataset: annotation file'),
])
def test_missing_parts_are_named(cfg, path, what):
    target = re.escape(f'{cfg.data_root}/{path}')
    (Path(cfg.data_root) / path).rename(f'{cfg.data_root}/moved')
    with pytest.raises(PreflightError, match=f"{what} '{target}' does not exist"):
        check(cfg, training=True)


@pytest.mark.parametrize(('key', 'what'), [('ann_file', 'annotation file'), ('seg_prefix', 'folder of maps')])
def test_missing_evaluator_file(cfg, key, what):
    cfg.test_evaluator[key] = 'gone'
    with pytest.raises(PreflightError, match=f"CocoMetric: {what} 'gone' does not exist"):
        check(cfg, training=False)


def test_wrapped_data_sets_are_seen(cfg):
    inner = copy.deepcopy(cfg.train_dataloader.dataset)
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=inner)
    cfg.train_dataloader.dataset.dataset.ann_file = 'gone.json'
    with pytest.raises(PreflightError, match=r"annotation file '.*gone.json' does not exist"):
        check(cfg, training=True)


def test_missing_checkpoint_lists_what_is_there(tmp_path):
    (tmp_path / 'epoch_1.pth').touch()
    with pytest.raises(PreflightError, match=r"epoch_2.pth' does not exist; .* has epoch_1.pth\."):
        check_checkpoint(str(tmp_path / 'epoch_2.pth'))
    with pytest.raises(PreflightError, match=r'there is no .pth file in'):
        check_checkpoint(str(tmp_path / 'other' / 'epoch_2.pth'))


def test_init_cfg_is_checked(cfg):
    cfg.model.backbone.backbone.init_cfg = dict(type='Pretrained', checkpoint='gone.pth')
    with pytest.raises(PreflightError, match="Checkpoint 'gone.pth' does not exist"):
        check(cfg, training=True)
    check(cfg, training=False)


def test_weights_that_cannot_be_downloaded(offline):
    with pytest.raises(PreflightError, match=(
            r"'torchvision://resnet50' is not in .*checkpoints and cannot be downloaded \(no network\): put "
            r'resnet50-\w+.pth there, or give no weights by --cfg-options: load_from=None, or init_cfg=None')):
        check_checkpoint('torchvision://resnet50')
    offline.mkdir(parents=True)
    (offline / 'model.pth').touch()
    check_checkpoint('https://example.org/model.pth')


def test_unknown_torchvision_weights(offline):
    with pytest.raises(PreflightError, match="'torchvision://resnet51': torchvision has no such weights"):
        check_checkpoint('torchvision://resnet51')


@pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU is here')
def test_amp_without_a_gpu(cfg):
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    with pytest.raises(PreflightError, match='needs a GPU and this machine has none'):
        check(cfg, training=True)


def test_mmpretrain_folder_of_a_split(tmp_path):
    dataset = dict(type='ImageNet', data_root=str(tmp_path), split='train', pipeline=[])
    cfg = Config(dict(default_scope='mmpretrain', train_dataloader=dict(dataset=dataset), model={}))
    with pytest.raises(PreflightError, match="ImageNet: image folder '.*/train' does not exist"):
        check(cfg, training=True)


class Malicious:
    def __reduce__(self):
        return print, ('this must never run',)


def test_code_in_a_checkpoint_does_not_run(tmp_path, capsys):
    torch.save(dict(state_dict=Malicious()), tmp_path / 'bad.pth')
    with pytest.raises(PreflightError, match='cannot be read as plain weights: .*print'):
        load_weights(str(tmp_path / 'bad.pth'))
    assert 'never' not in capsys.readouterr().out


def test_files_that_are_no_checkpoint(tmp_path):
    for content, message in ((b'PK\x03\x04 torn', 'the file is torn: get it anew'), (b'', 'it is empty: get it anew'),
                             (b'\n<!DOCTYPE html>', 'it is a web page: take the address of the file itself'),
                             (b'version https://git-lfs.github.com/spec/v1', 'Git LFS: git lfs pull fetches the file'),
                             (b'\x20\0\0\0\0\0\0\0{"a":{}}', 'of safetensors: torch.save.safetensors.torch.load_file'),
                             (b'\x1f\x8b\x08', 'it is packed by gzip: unpack it'),
                             (b'weights', 'torch has not saved this file'),
                             (b'Predictions', 'torch has not saved this file')):
        (tmp_path / 'some.pth').write_bytes(content)
        with pytest.raises(PreflightError, match=f"some.pth' is no checkpoint: .*{message}"):
            load_weights(str(tmp_path / 'some.pth'))
    with zipfile.ZipFile(tmp_path / 'packed.pth', 'w') as archive:
        archive.writestr('epoch_1.pth', b'')
    with pytest.raises(PreflightError, match=r'an archive of other files \(epoch_1.pth\): unpack it'):
        load_weights(str(tmp_path / 'packed.pth'))
    np.savez(tmp_path / 'arrays.npz', a=np.zeros(2))
    with pytest.raises(PreflightError, match='it is of NumPy: torch.save.*torch.from_numpy'):
        load_weights(str(tmp_path / 'arrays.npz'))
    torch.jit.trace(nn.Linear(1, 1), torch.zeros(1, 1)).save(tmp_path / 'traced.pt')
    with pytest.raises(PreflightError, match='it is of TorchScript, with code: torch.save.torch.jit.load'):
        load_weights(str(tmp_path / 'traced.pt'))
    for content, name in ((nn.Linear(1, 1), 'torch.nn.modules.linear.Linear'),
                          (dict(model={}, args=Namespace(lr=1)), 'argparse.Namespace')):
        torch.save(content, tmp_path / 'model.pth')
        with pytest.raises(PreflightError, match=f'GLOBAL {name}, an object .*: torch.save.dict.state_dict=.*, of a '):
            load_weights(str(tmp_path / 'model.pth'))
    for content, message in ((dict(epoch=3), 'but epoch: save'), ({}, 'but nothing: save'), ([1], 'but a list: save')):
        torch.save(content, tmp_path / 'other.pth')
        with pytest.raises(PreflightError, match=f'holds no state_dict, {message}'):
            load_weights(str(tmp_path / 'other.pth'))


def test_a_checkpoint_of_another_model(tmp_path):
    model = RKANet(dict(type='mmdet.ResNet', depth=18, base_channels=4, stem_channels=4))
    torch.save(dict(state_dict={'encoder.weight': torch.zeros(1)}), tmp_path / 'other.pth')
    with pytest.raises(PreflightError, match=r'fits nothing of the model: it has encoder.weight; the model has '
                                             r'backbone.bn1.bias, backbone.bn1.num_batches_tracked, '):
        check_fit(model, str(tmp_path / 'other.pth'))
    for plain in ({'bn1.weight': torch.zeros(4)}, {'module.backbone.bn1.weight': torch.zeros(4)}):
        torch.save(plain, tmp_path / 'plain.pth')
        check_fit(model, str(tmp_path / 'plain.pth'))


@pytest.mark.parametrize(('line', 'said'), [
    ('{"ID": "b", "gtboxes": [{"tag": "person", "fbox": [1, 1, 5, 5]}]}',
     r'KeyError: hbox, in CrowdHumanDataset of .*/train.odgt, at b\.'),
    ('{"ID": "b", ', r'JSONDecodeError: .*, in CrowdHumanDataset of [^ ]*/train.odgt\.')])
def test_a_line_that_a_data_set_does_not_read(tmp_path, line, said):
    (tmp_path / 'train.odgt').write_text(f'{{"ID": "a", "gtboxes": []}}\n{line}\n')
    (tmp_path / 'id_hw_train.json').write_text('{"a": [9, 9], "b": [9, 9]}')
    with pytest.raises(PreflightError, match=f'^Building: {said}'), building('Building', reading=True):
        CrowdHumanDataset(data_root=str(tmp_path), ann_file='train.odgt', data_prefix=dict(img=''))
