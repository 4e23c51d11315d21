"""The scripts for a machine without a network, with a Python that only writes down what it is asked for."""

import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / 'tools').mkdir()
    for name in ('tools/offline_prepare.sh', 'tools/offline_machine.sh', 'pyproject.toml'):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def python3(folder, body):
    path = folder / 'bin/python3'
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\n{body}\n')
    path.chmod(0o755)
    return path


def bash(folder, command, **variables):
    return subprocess.run(['bash', '-c', command], cwd=folder, capture_output=True, text=True,
                          env=dict(PATH=f'{folder}/bin:/usr/bin:/bin', **variables))


def test_what_is_prepared(checkout):
    python = python3(checkout, 'echo "$@" >>asked')
    done = bash(checkout, 'tools/offline_prepare.sh', PYTHON=str(python), FOR_PYTHON='3.13')
    assert done.returncode == 0, done.stderr
    wheels, mm, source = (checkout / 'asked').read_text().splitlines()
    assert '--python-version 3.13' in wheels
    project = (ROOT / 'pyproject.toml').read_text()
    for line, names in ((wheels, ['mmengine']), (mm, ['mmdetection', 'mmpretrain']), (source, ['mmcv'])):
        wanted = [word for word in line.split() if word.startswith('onedl-')]
        assert [word.partition('==')[0] for word in wanted] == [f'onedl-{name}' for name in names]
        assert all(f'"{word}"' in project for word in wanted)


def test_a_download_that_fails(checkout):
    python = python3(checkout, 'exit 3')
    assert bash(checkout, 'tools/offline_prepare.sh', PYTHON=str(python)).returncode == 3


def test_without_an_environment(checkout):
    done = bash(checkout, 'tools/offline_prepare.sh')
    assert done.returncode == 1
    assert 'no .venv/bin/python: run make setup first' in done.stderr


def test_the_stack_is_there_whole_or_not_at_all(checkout):
    (checkout / '.offline').mkdir()
    python3(checkout, 'mkdir -p "$SITE.part"; exit $FAILS')
    source = '. tools/offline_machine.sh'
    variables = dict(SITE=str(checkout / 'site'), MMCV=str(checkout / 'mmcv'))
    failed = bash(checkout, source, FAILS='1', **variables)
    assert failed.returncode == 1
    assert 'the mm stack could not be installed' in failed.stderr
    assert not (checkout / 'site').exists()
    (checkout / 'onedl_mmcv-1/mmcv').mkdir(parents=True)
    (checkout / 'onedl_mmcv-1/PKG-INFO').write_text('Name: onedl-mmcv\nVersion: 2.3.6\n')
    subprocess.run(['tar', '-czf', '.offline/onedl_mmcv-1.tar.gz', 'onedl_mmcv-1'], cwd=checkout, check=True)
    assert bash(checkout, f'{source} && echo $PYTHONPATH', FAILS='0', **variables).stdout.startswith(
        f'{checkout}/site:{checkout}')
    assert (checkout / 'site/mmcv').is_dir()
    found = subprocess.run([sys.executable, '-c', 'from importlib.metadata import version\n'
                            'print(version("onedl-mmcv"), version("transformers"))'], capture_output=True, text=True,
                           env=dict(PYTHONPATH=str(checkout / 'site')))
    assert found.stdout.split() == ['2.3.6', '0'], found.stderr


CUDA = '''// Copyright
#include "registry.hpp"

void NmsLauncher(Tensor boxes);
void nms_cuda(Tensor boxes) {
  NmsLauncher(boxes);
};
void nms_impl(Tensor boxes);
REGISTER_DEVICE_IMPL(nms_impl, CUDA,
                     nms_cuda);

void KnnLauncher(Tensor points);
void knn_impl(Tensor points);
REGISTER_DEVICE_IMPL(knn_impl, CUDA, knn_cuda);
'''
BINDING = '''Tensor nms(Tensor boxes);
Tensor knn(Tensor points);
Tensor fast_knn(Tensor points);
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("version", &version, "version");
  m.def("nms", &nms, "nms (CPU/CUDA)",
        py::arg("boxes"));
  m.def("knn", &knn, "knn", py::arg("points"));
  m.def("fast_knn", &fast_knn, "fast", py::arg("points"));
}
'''


def test_some_operations_of_mmcv(tmp_path):
    """As mmcv's own files are, whose operations nms and roi_align were compiled so, and ran on a GPU."""
    files = tmp_path / 'mmcv/ops/csrc/pytorch'
    for name, text in {
            'nms.cpp': 'Tensor nms_impl(Tensor boxes) {}\nTensor nms(Tensor boxes) {}', 'cpu/nms.cpp': '',
            'knn.cpp': 'Tensor knn_impl(Tensor p) {}\nTensor knn(Tensor p) {}', 'cuda/nms_cuda.cu': '',
            'cuda/knn_cuda.cu': '', 'fast_knn.cpp': 'Tensor fast_knn(Tensor p) {}',
            'info.cpp': 'std::string version() {}', 'cuda/cudabind.cpp': CUDA, 'pybind.cpp': BINDING}.items():
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_text(text)
    command = [sys.executable, str(ROOT / 'tools/offline_ops.py'), str(tmp_path)]
    wrong = subprocess.run([*command, 'nmss'], capture_output=True, text=True)
    assert wrong.returncode == 1
    assert wrong.stderr == 'no operation nmss; there are fast_knn, knn, nms\n'
    subprocess.run([*command, 'fast_knn'], check=True)  # nms stays: it is tried when all is compiled
    assert sorted(str(path.relative_to(files)) for path in files.rglob('*.c*')) == [
        'cpu/nms.cpp', 'cuda/cudabind.cpp', 'cuda/nms_cuda.cu', 'fast_knn.cpp', 'info.cpp', 'nms.cpp', 'pybind.cpp']
    cuda, binding = (files / 'cuda/cudabind.cpp').read_text(), (files / 'pybind.cpp').read_text()
    assert cuda.startswith('// Copyright\n#include')
    assert 'NmsLauncher' in cuda
    assert 'Knn' not in cuda
    assert re.findall(r'm\.def\("(\w+)"', binding) == ['version', 'nms', 'fast_knn', '__getattr__']


def test_operations_that_were_left_out_before(checkout):
    """Each call compiles what it names, or all; and is waited for, however late it begins."""
    (checkout / '.offline').mkdir()
    (checkout / 'onedl_mmcv-1/mmcv').mkdir(parents=True)
    (checkout / 'onedl_mmcv-1/PKG-INFO').write_text('Version: 2.3.6\n')
    for name in ('nms.cpp', 'knn.cpp'):
        (checkout / 'onedl_mmcv-1/mmcv' / name).touch()
    subprocess.run(['tar', '-czf', '.offline/onedl_mmcv-1.tar.gz', 'onedl_mmcv-1'], cwd=checkout, check=True)
    python3(checkout, 'case "$1 $2" in "tools/offline_ops.py "*) rm "$2/mmcv/knn.cpp";; '
            '"-m pip") mkdir "$SITE.part";;\n'
            'setup.py*) echo compiled $(ls mmcv) >>"$ASKED"; touch mmcv/_ext.so;; esac')
    command = ('. tools/offline_machine.sh; cd() { sleep 0.5; builtin cd "$@"; }\n'
               'for names in nms "" "nms"; do mmcv_ops $names || exit; mmcv_ops; wait_for_ops || exit; done')
    done = bash(checkout, command, SITE=str(checkout / 'site'), MMCV=str(checkout / 'mmcv'),
                ASKED=str(checkout / 'asked'))
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["mmcv's ops are being compiled: wait_for_ops first"] * 3
    assert (checkout / 'asked').read_text().splitlines() == [
        'compiled nms.cpp', 'compiled knn.cpp nms.cpp', 'compiled _ext.so nms.cpp']
    assert (checkout / 'site/mmcv/_ext.so').is_file()
