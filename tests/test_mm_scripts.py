"""mm's own scripts on our configs, those that need no data (docs/mm-scripts.md)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mmdet
import mmpretrain
import pytest
import torch
from config_files import ENTRIES
from conftest import ROOT

pytestmark = pytest.mark.slow
MMDET, MMPRETRAIN = (Path(package.__file__).parent / '.mim/tools' for package in (mmdet, mmpretrain))


def run(script, *args, cwd):
    done = subprocess.run([sys.executable, str(script), *map(str, args)], capture_output=True, text=True, cwd=cwd,
                          env={**os.environ, 'PYTHONPATH': str(ROOT), 'MPLBACKEND': 'agg'})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(('tools', 'name'), [
    (MMDET, 'mask-rcnn_rkanet18_fpn_shapes'), (MMPRETRAIN, 'rkan-resnet50_1xb128-100e_in1k')])
def test_get_flops(tools, name, tmp_path):
    # mmdet's counts on a picture of the data set
    entry = ENTRIES[name]
    if tools is MMDET:
        from rkan_mm.datasets.shapes import make_shapes
        make_shapes(tmp_path / 'data/shapes', num_train=2, num_val=2)
    printed = run(tools / 'analysis_tools/get_flops.py', ROOT / entry['Config'], cwd=tmp_path)
    assert f'{entry["Metadata"]["Parameters"] / 1e6:.3f}M' in printed or \
        f'{entry["Metadata"]["Parameters"] / 1e6:.2f}' in printed


def test_browse_dataset(tmp_path):
    from rkan_mm.datasets.shapes import make_shapes
    make_shapes(tmp_path / 'data/shapes', num_train=2, num_val=2)
    run(MMDET / 'analysis_tools/browse_dataset.py', ROOT / 'configs/mask-rcnn_rkanet18_fpn_shapes.py',
        '--output-dir', tmp_path / 'out', '--not-show', cwd=tmp_path)
    assert len(list((tmp_path / 'out').iterdir())) == 2


def test_analyze_logs(tmp_path):
    log = tmp_path / 'log.json'
    log.write_text('\n'.join(json.dumps(dict(epoch=1, iter=i, step=i, loss=1 / i, lr=0.1)) for i in (1, 2, 3)))
    run(MMDET / 'analysis_tools/analyze_logs.py', 'plot_curve', log, '--keys', 'loss', '--style', 'classic',
        '--out', tmp_path / 'loss.pdf', cwd=tmp_path)
    assert (tmp_path / 'loss.pdf').exists()


def test_publish_model(tmp_path):
    torch.save(dict(state_dict=dict(a=torch.zeros(2)), optimizer={}), tmp_path / 'in.pth')
    run(MMDET / 'model_converters/publish_model.py', tmp_path / 'in.pth', tmp_path / 'out.pth', cwd=tmp_path)
    published, = tmp_path.glob('out-*.pth')
    assert set(torch.load(published)) == {'state_dict'}


def test_confusion_matrix_and_kinds_of_errors(tmp_path):
    """On detections of a net of random weights."""
    from rkan_mm.apis.runner import load_config, test
    from rkan_mm.benchmarks.steps import build
    from rkan_mm.datasets.shapes import make_shapes
    make_shapes(tmp_path / 'data/shapes', num_train=2, num_val=4)
    config = ROOT / 'configs/mask-rcnn_rkanet18_fpn_shapes.py'
    cfg = load_config(str(config))
    torch.save(dict(state_dict=build(cfg).state_dict()), tmp_path / 'random.pth')
    test([str(config), str(tmp_path / 'random.pth'), '--out', str(tmp_path / 'out.pkl'), '--work-dir', str(tmp_path),
          '--cfg-options', f'data_root={tmp_path}/data/shapes/', f'test_evaluator.outfile_prefix={tmp_path}/found',
          'model.test_cfg.rcnn.score_thr=0.0'])
    run(MMDET / 'analysis_tools/confusion_matrix.py', config, tmp_path / 'out.pkl', tmp_path / 'matrix', cwd=tmp_path)
    assert (tmp_path / 'matrix/confusion_matrix.png').exists()
    content = json.loads((tmp_path / 'data/shapes/annotations/val.json').read_text())
    for category in content['categories']:
        category['supercategory'] = 'shape'  # which the script asks for
    (tmp_path / 'val.json').write_text(json.dumps(content))
    run(MMDET / 'analysis_tools/coco_error_analysis.py', tmp_path / 'found.bbox.json', tmp_path / 'errors',
        f'--ann={tmp_path}/val.json', cwd=tmp_path)
    assert list((tmp_path / 'errors').rglob('*.png'))
