"""Configs found by name, where mm users look for them."""

import os
import subprocess
import sys
from pathlib import Path

import mmdet
import mmengine.config.config
import mmengine.hub.hub
import pytest
import yaml
from config_files import ENTRIES, METAFILES
from conftest import ROOT

import rkan_mm
from rkan_mm.hub import place_of

BY_NAME = """
import sys, warnings
import rkan_mm
assert not {'mmpretrain', 'mmdet'} & set(sys.modules)
import mmpretrain
names = mmpretrain.list_models('*rkan*')
assert 'rkan-resnet50_1xb128-100e_in1k' in names and not [name for name in names if 'rcnn' in name], names
assert 'resnet18_8xb16_cifar10' in mmpretrain.list_models()  # mmpretrain's own
model = mmpretrain.get_model('rkan-resnet34_1xb128-100e_in1k')
assert type(model.backbone) is rkan_mm.models.RKANet
import numpy as np
import torch
from mmdet.apis import DetInferencer
from mmengine.config import Config
warnings.simplefilter('ignore')
detector = DetInferencer('mask-rcnn_rkanet18_fpn_shapes', weights=WEIGHTS, scope='rkan_mm', device='cpu')
assert detector.model.dataset_meta['classes'] == ('a', 'b', 'c', 'd', 'e')
assert set(detector(np.zeros((64, 64, 3), np.uint8))['predictions'][0]) == {'labels', 'scores', 'bboxes', 'masks'}
open('mine.py', 'w').write("_base_ = 'rkan_mm::coco/mask-rcnn_rkanet-e50_fpn_1x_coco.py'")
assert Config.fromfile('mine.py').model.backbone.type == 'rkan_mm.RKANet'  # by mmengine alone, once rkan_mm is imported
open('top.py', 'w').write("_base_ = 'rkan_mm::mask-rcnn_rkanet50_fpn_1x_coco.py'")
from rkan_mm.apis.runner import load_config
assert load_config('top.py').model.backbone.type == 'rkan_mm.RKANet'
print(rkan_mm.__file__)
"""


def found_by_name(folder, **environment):
    """Run the calls above in a folder; where rkan_mm was imported from."""
    weights = folder / 'weights.py'
    weights.write_text(f'WEIGHTS = {str(folder / "weights.pth")!r}\n' + """
import torch
from mmengine.registry import MODELS, init_default_scope
from rkan_mm.apis.configs import read_config
cfg = read_config('mask-rcnn_rkanet18_fpn_shapes')
init_default_scope('mmdet')
torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict(),
                meta=dict(dataset_meta=dict(classes=tuple('abcde')))), WEIGHTS)
""")
    call = folder / 'call.py'
    call.write_text(f'WEIGHTS = {str(folder / "weights.pth")!r}\n{BY_NAME}')
    for script in (weights, call):
        done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=folder,
                              env={**os.environ, **environment})
        assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_the_index_names_every_metafile():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    assert sorted(index) == [str(path.relative_to(ROOT)) for path in METAFILES]
    collections = {entry['Name'] for path in METAFILES
                   for entry in yaml.safe_load(path.read_text()).get('Collections', [])}
    for entry in ENTRIES.values():
        assert entry['In Collection'] in collections
        assert 'Weights' in entry  # mmengine's inferencers ask for it


def test_a_checkout(tmp_path):
    assert found_by_name(tmp_path, PYTHONPATH=str(ROOT)).startswith(str(ROOT))


def test_mmengine_finds_this_copy_and_other_packages_as_before():
    """Of a package that is installed editable mmengine 0.10.7 names a folder among those of packages."""
    for module in (mmengine.config.config, mmengine.hub.hub):
        assert module.get_installed_path.plain('mmdet') == module.get_installed_path('mmdet')
        assert Path(module.get_installed_path('rkan_mm')) == Path(rkan_mm.__file__).parent
        assert Path(module.get_installed_path('mmdet')) == Path(mmdet.__file__).parent
    assert place_of(lambda package: f'elsewhere/{package}', 'rkan_mm') == str(Path(rkan_mm.__file__).parent)
    assert place_of(lambda package: f'elsewhere/{package}', 'mmdet') == 'elsewhere/mmdet'


@pytest.mark.slow
def test_the_wheel_alone(tmp_path):
    wheels, site, work = tmp_path / 'wheels', tmp_path / 'site', tmp_path / 'work'
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '-q']
    subprocess.run([*pip, 'wheel', '--no-deps', '--no-build-isolation', '-w', wheels, ROOT], check=True)
    subprocess.run([*pip, 'install', '--no-deps', '--target', site, *wheels.glob('*.whl')], check=True)
    mim = site / 'rkan_mm/.mim'
    for name in ('configs', 'tools'):
        assert {path.relative_to(ROOT / name) for path in (ROOT / name).rglob('*') if '__pycache__' not in path.parts} \
            == {path.relative_to(mim / name) for path in (mim / name).rglob('*') if '__pycache__' not in path.parts}
    work.mkdir()
    assert found_by_name(work, PYTHONPATH=str(site)).startswith(str(site))
    help_text = subprocess.run([site / 'bin/rkan-mm', '--help'], capture_output=True, text=True, check=True, cwd=work,
                               env={'PYTHONPATH': str(site), 'PATH': ''}).stdout
    assert 'rkan-mm train' in help_text
