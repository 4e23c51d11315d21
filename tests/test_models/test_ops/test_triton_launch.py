"""Launches of Triton kernels with a driver that launches nothing: what a GPU would be given."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

triton = pytest.importorskip('triton')
import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver  # noqa: E402

from rkan_mm.models.ops import triton_launch  # noqa: E402
from rkan_mm.models.ops.triton_launch import Launch  # noqa: E402

pytestmark = pytest.mark.skipif(not triton_launch.TAKES_ALL_ARGUMENTS, reason='such a Triton launches each time anew')


@triton.jit(do_not_specialize=['size'])
def _scale(x, y, lanes, size, FACTORS: tl.constexpr, TURN: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + place, place < size, 0.0).to(tl.float32) * FACTORS[0] * lanes
    tl.store(y + place, -value if TURN else value, place < size)


class OnGpu(torch.Tensor):
    is_cuda = True


def on_gpu(x: torch.Tensor) -> torch.Tensor:
    return x.as_subclass(OnGpu)


@pytest.fixture
def launched(monkeypatch):
    """Grid, kernel and arguments of all launches."""
    found = []

    class Utils:
        def load_binary(self, name, *_):
            return None, name, 32, 0, 1024  # without a module there is none to unload

        def get_device_properties(self, device):
            return dict(max_shared_mem=232448, multiprocessor_count=132, warpSize=32)

    class Launcher:
        def __init__(self, source, metadata):
            self.source = source

        def __call__(self, *args):
            found.append((self.source, args[:3], args[-7:]))

    class Driver:
        launcher_cls, utils = Launcher, Utils()

        def get_current_device(self):
            return 0

        def get_current_stream(self, device):
            return 0

        def get_current_target(self):
            return GPUTarget('cuda', 90, 32)

    monkeypatch.setattr(driver, '_active', Driver())
    yield found
    _scale.device_caches.clear()


def test_the_second_launch_is_given_what_triton_gives(launched, monkeypatch):
    launch = Launch(_scale, (3,), (1, 40), FACTORS=(2.0, 3.0), TURN=False, BLOCK=16, num_warps=2)
    x, y = on_gpu(torch.rand(48)), on_gpu(torch.rand(48))
    launch(x, y)
    with monkeypatch.context() as patch:
        patch.setattr(type(_scale), 'run', None)
        launch(y, x)
    (first, *of_first), (second, *of_second) = launched
    assert first is second
    assert of_first == [(3, 1, 1), (x, y, 1, 40, (2.0, 3.0), False, 16)]
    assert of_second == [(3, 1, 1), (y, x, 1, 40, (2.0, 3.0), False, 16)]


def test_a_variant_for_each_dtype_and_alignment(launched):
    """Triton takes pointers to multiples of 16 for granted in one variant, and a GPU would fail on others."""
    launch, x = Launch(_scale, (1,), (2, 8), FACTORS=(2.0,), TURN=True, BLOCK=16), torch.rand(32)
    kinds = [on_gpu(x[:8]), on_gpu(x[1:9]), on_gpu(x[:8].half())]
    for _ in range(2):
        for each in kinds:
            launch(each, each)
    sources = [source for source, *_ in launched]
    assert len(set(map(id, sources))) == 3
    assert sources[:3] == sources[3:]


def test_what_runs_in_the_interpreter_is_not_kept():
    class Interpreted:
        arg_names = 'x',

        def __getitem__(self, grid):
            return lambda *args: seen.append(args)

    seen, launch, x = [], Launch(Interpreted(), (1,)), on_gpu(torch.rand(4))
    launch(x)
    launch(x)
    assert len(seen) == 2


def test_a_kernel_is_checked_on_the_device_that_it_names():
    """Whatever `torch.set_default_device` says: a generator of the CPU makes numbers there alone."""
    def check() -> bool:
        return torch.rand(1, generator=torch.Generator()).device.type == 'cpu'

    with torch.device('meta'):
        assert triton_launch._run(check, (), -1)


def test_a_kernel_is_checked_on_the_gpu_of_its_input(monkeypatch):
    """With ``init_detector(..., device='cuda:1')`` the current GPU is another one, which may be full."""
    class OnGpu(torch.Tensor):
        def get_device(self) -> int:
            return self.shape[0]

    @contextmanager
    def device(gpu: int) -> Iterator[None]:
        found.append(gpu)
        yield

    def check(case: str) -> bool:
        found.append(case)
        return True

    found = []
    monkeypatch.setattr(triton_launch, '_known', {})
    monkeypatch.setattr(torch.cuda, 'device', device)
    for gpu in (1, 1, 0):
        assert triton_launch.is_right(check, torch.empty(gpu).as_subclass(OnGpu), 'case')
    assert found == [1, 'case', 'case', 0, 'case', 'case']
