"""Processes that fork while another thread builds layers."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import copy, os, signal, threading, torch
from rkan_mm.models import KANConv2d, KANLinear, SharedKANConv2d
from rkan_mm.models.layers.tied import every_layer
torch.set_num_threads(1)
pairs = [(KANLinear(4, 3), torch.randn(5, 4)), (KANConv2d(2, 3, 3), torch.randn(2, 2, 5, 5)),
         (SharedKANConv2d(3), torch.randn(2, 2, 5, 5))]
expected = [layer(x) for layer, x in pairs] if {warm} else None
stop, many = threading.Event(), [KANLinear.__new__(KANLinear) for _ in range(20000)]

def build():
    while not stop.is_set():
        copy.deepcopy(pairs[0][0])
        every_layer()  # which takes long, of so many

thread = threading.Thread(target=build)
thread.start()
children = []
for _ in range(5):
    child = os.fork()
    if not child:
        signal.alarm(100)
        found = [copy.deepcopy(layer)(x) for layer, x in pairs]
        for y in found:
            y.sum().backward()
        os._exit(0 if expected is None or all(map(torch.equal, found, expected)) else 1)
    children.append(child)
codes = [os.waitpid(child, 0)[1] for child in children]
stop.set()
thread.join()
print('codes', set(codes))
"""


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork on this system')
@pytest.mark.parametrize('warm', [True, False])
def test_children_build_and_run_layers(warm):
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', SCRIPT.format(warm=warm)], capture_output=True,
                            text=True, timeout=120)
    assert 'codes {0}' in result.stdout, result.stdout + result.stderr
