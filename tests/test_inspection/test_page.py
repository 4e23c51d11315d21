"""tools/inspect.py: the page of a detector, and what it does beside the other tools."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from rkan_mm.apis import inspect
from rkan_mm.apis.runner import load_config
from rkan_mm.benchmarks.steps import build
from rkan_mm.datasets.shapes import make_shapes

CONFIG = str(ROOT / 'configs/mask-rcnn_rkanet18_fpn_shapes.py')


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # the temporary folder of mmdet's metric
def test_the_page_of_a_detector(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_shapes(tmp_path / 'shapes', num_train=2, num_val=3)
    torch.manual_seed(0)
    torch.save(dict(state_dict=build(load_config(CONFIG)).state_dict()), 'random.pth')
    inspect.main([CONFIG, 'random.pth', '--num-images', '3', '--out-dir', 'out', '--skip', 'cam',
                  '--cfg-options', f'data_root={tmp_path}/shapes/'])
    page = (tmp_path / 'out/index.html').read_text()
    assert 'layer4.kan1: its functions' in page
    assert 'http://' not in page.replace('http://www.w3.org', '')
    assert 'src="http' not in page
    assert len(page) < 20 * 2**20
    assert json.loads((tmp_path / 'out/data.json').read_text())
    assert list((tmp_path / 'out/figures').glob('*.png'))


def test_the_standard_librarys_inspect_is_not_hidden():
    """tools/ comes first on sys.path of a script in it."""
    code = ("import sys; sys.path.insert(0, 'tools'); import inspect; "
            "print(inspect.signature(inspect.getsource), inspect.__file__)")
    done = subprocess.run([sys.executable, '-S', '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert 'tools' not in done.stdout
