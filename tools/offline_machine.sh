#!/usr/bin/env bash
# On a machine that has a GPU, PyTorch and nvcc but no network, with the files of tools/offline_prepare.sh. In the
# checkout: `. tools/offline_machine.sh`. It puts the mm stack beside the PyTorch that is there, into $SITE (/tmp/site),
# mmcv without its compiled ops: layers and classifiers run. `mmcv_ops` starts compiling them for this GPU in the
# background (3 minutes on 16 cores), `wait_for_ops` waits for it; then detectors run, too. `mmcv_ops nms roi_align`
# compiles those alone (1 minute), which is what Faster and Mask R-CNN need.
SITE="${SITE:-/tmp/site}" MMCV="${MMCV:-/tmp/mmcv}"
export PYTHONPATH="$SITE:$PWD" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

unpack_mmcv() {
  rm -rf "$MMCV" && mkdir -p "$MMCV" && tar -xzf .offline/*mmcv*.tar.gz -C "$MMCV" --strip-components 1
}

install_stack() {
  rm -rf "$SITE.part"
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$SITE.part" .offline/*.whl &&
    unpack_mmcv &&
    cp -r "$MMCV/mmcv" "$SITE.part/mmcv" &&
    version=$(sed -n 's/^Version: //p' "$MMCV/PKG-INFO") && mkdir "$SITE.part/onedl_mmcv-$version.dist-info" &&
    cp "$MMCV/PKG-INFO" "$SITE.part/onedl_mmcv-$version.dist-info/METADATA" &&  # mmcv asks for its own version
    mkdir "$SITE.part/transformers" "$SITE.part/transformers-0.dist-info" &&  # mmpretrain breaks on version 5, so hide it
    echo 'raise ImportError("hidden: mmpretrain takes versions below 5")' >"$SITE.part/transformers/__init__.py" &&
    printf 'Metadata-Version: 2.1\nName: transformers\nVersion: 0\n' >"$SITE.part/transformers-0.dist-info/METADATA" &&
    { python3 -W ignore -m compileall -q -j0 "$SITE.part" >/dev/null 2>&1 || true; } &&  # saves each process 1.5 s
    mv "$SITE.part" "$SITE"  # whole, or not there
}

mmcv_ops() {
  [ -d "$MMCV" ] || { echo "there is no $MMCV" >&2; return 1; }
  if [ -e "$MMCV/pid" ] && [ ! -e "$MMCV/ended" ] && kill -0 "$(cat "$MMCV/pid")" 2>/dev/null; then
    echo "mmcv's ops are being compiled: wait_for_ops first" >&2
    return 1
  fi
  [ ! -e "$MMCV/reduced" ] || unpack_mmcv || return  # an earlier call left operations out
  [ $# = 0 ] || { touch "$MMCV/reduced" && python3 tools/offline_ops.py "$MMCV" "$@"; } || return
  rm -f "$MMCV/ended"
  (
    cd "$MMCV" || exit
    # cusparse.h and its like lie beside torch's libraries, not always with nvcc
    CPATH=$(python3 -c "
import glob, sysconfig
print(':'.join(glob.glob(sysconfig.get_paths()['purelib'] + '/nvidia/*/include')))")
    TORCH_CUDA_ARCH_LIST=$(python3 -c "import torch; print('%d.%d' % torch.cuda.get_device_capability())")
    export CPATH TORCH_CUDA_ARCH_LIST MMCV_WITH_OPS=1 FORCE_CUDA=1 MAX_JOBS="${MAX_JOBS:-$(nproc)}"
    CFLAGS='-DNDEBUG -fwrapv -O2 -g0 -w' nice -n 10 python3 setup.py build_ext --inplace >build.log 2>&1
    echo $? >ended
  ) &
  echo $! >"$MMCV/pid"
}

wait_for_ops() {
  while [ ! -e "$MMCV/ended" ] && kill -0 "$(cat "$MMCV/pid" 2>/dev/null)" 2>/dev/null; do sleep 1; done
  if [ "$(cat "$MMCV/ended" 2>/dev/null)" != 0 ]; then
    echo "mmcv's ops are not compiled" >&2
    grep -m5 error "$MMCV/build.log"
    tail -5 "$MMCV/build.log"
    return 1
  fi
  cp "$MMCV"/mmcv/_ext*.so "$SITE/mmcv/" && python3 -c "
import torch; from mmcv.ops import nms
boxes = torch.tensor([[0., 0, 4, 4], [0, 0, 4, 3]]).cuda()
assert nms(boxes, torch.tensor([.9, .8]).cuda(), .5)[1].tolist() == [0]
print('mmcv has its ops on the GPU')"
}

[ -d "$SITE" ] || install_stack || { echo 'the mm stack could not be installed' >&2; false; }
