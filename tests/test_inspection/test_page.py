"""tools/inspect.py beside the other tools."""

import subprocess
import sys

from conftest import ROOT


def test_the_standard_librarys_inspect_is_not_hidden():
    """tools/ comes first on sys.path of a script in it."""
    code = ("import sys; sys.path.insert(0, 'tools'); import inspect; "
            "print(inspect.signature(inspect.getsource), inspect.__file__)")
    done = subprocess.run([sys.executable, '-S', '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert 'tools' not in done.stdout
