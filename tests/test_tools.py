"""The launch scripts of tools/ pass on what mm's users give them."""

import os
import subprocess

import pytest


@pytest.fixture
def called(root, tmp_path):
    """Run a script with programs in the place of python and srun that print their arguments."""
    for name in ('python', 'srun'):
        (tmp_path / name).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        (tmp_path / name).chmod(0o755)

    def run(script, *args, **environment):
        environment = {**os.environ, **environment, 'PATH': f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'}
        done = subprocess.run([str(root / 'tools' / script), *args], env=environment, capture_output=True, text=True,
                              check=True)
        return ' '.join(done.stdout.splitlines())
    return run


def test_one_machine(called, root):
    assert called('dist_train.sh', 'config.py', '8', '--amp', '--cfg-options', 'a=1 2').endswith(
        'torch.distributed.run --nnodes=1 --node_rank=0 --master_addr=127.0.0.1 --master_port=29500 '
        f'--nproc_per_node=8 {root}/tools/train.py config.py --launcher pytorch --amp --cfg-options a=1 2')
    assert called('dist_test.sh', 'config.py', 'epoch_12.pth', '8', '--out', 'a.pkl').endswith(
        f'--nproc_per_node=8 {root}/tools/test.py config.py epoch_12.pth --launcher pytorch --out a.pkl')


def test_several_machines(called):
    line = called('dist_train.sh', 'config.py', '8', NNODES='8', NODE_RANK='3', MASTER_ADDR='10.0.0.1', PORT='1234')
    assert '--nnodes=8 --node_rank=3 --master_addr=10.0.0.1 --master_port=1234 --nproc_per_node=8' in line


def test_slurm(called, root):
    line = called('slurm_train.sh', 'gpu', 'rkanet', 'config.py', 'work', '--resume', GPUS='16',
                  SRUN_ARGS='-t 2:00 -x a')
    assert line == ('-p gpu --job-name=rkanet --gres=gpu:8 --ntasks=16 --ntasks-per-node=8 --cpus-per-task=5 '
                    f'--kill-on-bad-exit=1 -t 2:00 -x a python -u {root}/tools/train.py config.py --work-dir work '
                    '--launcher slurm --resume')
    line = called('slurm_test.sh', 'gpu', 'rkanet', 'config.py', 'epoch_12.pth', GPUS='4')
    assert '--gres=gpu:4 --ntasks=4 --ntasks-per-node=4' in line
    assert line.endswith(f'python -u {root}/tools/test.py config.py epoch_12.pth --launcher slurm')
