import subprocess
import sys


def test_import_brings_in_neither_mmdet_nor_mmpretrain():
    code = ("import sys, rkan_mm; from rkan_mm.registry import MODELS; assert 'RKANet' in MODELS.module_dict; "
            "others = 'mmdet', 'mmpretrain', 'mmcv.ops', 'timm', 'rkan_mm.inspection'; "
            "print([name for name in others if name in sys.modules])")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'


def test_type_resolves_without_custom_imports():
    code = ("from mmengine.registry import MODELS; "
            "model = MODELS.build(dict(type='rkan_mm.RKANBlock', in_channels=8, out_channels=8)); "
            "print(type(model).__module__)")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'rkan_mm.models.rkan_block'


def test_custom_imports_register_everything():
    code = ("import rkan_mm; from mmengine.registry import HOOKS, MODELS; "
            "print(rkan_mm.__version__, MODELS.get('RKANet'), MODELS.get('KANConv2d'), HOOKS.get('KANGridUpdateHook'))")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith('0.')
    assert 'None' not in done.stdout
