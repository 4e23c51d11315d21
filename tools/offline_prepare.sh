#!/usr/bin/env bash
# For a machine that has a GPU, PyTorch and nvcc but no network: the mm stack as files, in the ignored folder .offline/.
# Run here, in a checkout that is set up; then take the checkout there and go on with tools/offline_machine.sh.
# FOR_PYTHON: its version of Python (3.12). PYTHON: the one here whose pip is used (.venv/bin/python).
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}" for_python="${FOR_PYTHON:-3.12}"
[ -x "$(command -v "$python")" ] || { echo "no $python: run make setup first, or name another by PYTHON" >&2; exit 1; }
stack() { grep -o "\"onedl-$1==[0-9.]*" pyproject.toml | tr -d '"'; }
download() { "$python" -m pip --disable-pip-version-check download -q --no-deps -d .offline "$@"; }

rm -rf .offline
mkdir .offline
platforms=(--platform manylinux2014_x86_64)
for glibc in 17 24 27 28 31 34 35; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
download --only-binary=:all: --python-version "$for_python" --implementation cp "${platforms[@]}" \
  "$(stack mmengine)" pycocotools addict termcolor yapf terminaltables shapely importlib-metadata zipp mat4py \
  ordered-set imaug platformdirs faster-coco-eval 'setuptools<80'
"$python" -m pip --disable-pip-version-check wheel -q --no-deps --no-build-isolation -w .offline \
  "$(stack mmdetection)" "$(stack mmpretrain)" model-index  # pure Python
download --no-binary :all: --no-build-isolation "$(stack mmcv)"
ls -1 .offline
du -sh .offline
