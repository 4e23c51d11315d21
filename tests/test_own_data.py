"""The page docs/your-own-data.md, followed word for word."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from rkan_mm.apis.efficientnet_lite import find_efficientnet_lite
from rkan_mm.preflight import PreflightError

pytestmark = pytest.mark.slow
BCCD = Path(os.environ.get('RKAN_MM_BCCD', ROOT.parent / 'shared/data/bccd'))


def test_from_pictures_to_detections(tmp_path):
    if not BCCD.is_dir():
        pytest.skip(f'needs the BCCD pictures in {BCCD} (or RKAN_MM_BCCD)')
    try:
        find_efficientnet_lite(0)
    except PreflightError as error:
        pytest.skip(str(error))
    page = (ROOT / 'docs/your-own-data.md').read_text()
    config, = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
    commands = [line for block in re.findall(r'```bash\n(.*?)```', page, re.DOTALL) for line in block.splitlines()]
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/bccd').symlink_to(BCCD)
    (tmp_path / 'tools').symlink_to(ROOT / 'tools')
    (tmp_path / 'my_cells.py').write_text(config)
    printed = ''
    for command in commands:
        words = shlex.split(command)
        if words[0] == 'pip':  # it is there
            continue
        assert words[0] == 'python'
        done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, cwd=tmp_path,
                              env={**os.environ, 'PYTHONPATH': str(ROOT)})
        assert done.returncode == 0, f'{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}'
        printed += done.stdout
    box_ap = float(re.findall(r'coco/bbox_mAP: (\d\.\d+)', printed)[-1])
    assert box_ap > 0.3
    assert (tmp_path / 'found/vis/BloodImage_00007.jpg').exists()
    found = json.loads((tmp_path / 'found/preds/BloodImage_00007.json').read_text())
    assert max(found['scores']) > 0.5
