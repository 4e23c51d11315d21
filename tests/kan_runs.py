"""Small models of KAN layers and mmengine's runner over them."""

import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from rkan_mm.engine import allow_mmengine_globals
from rkan_mm.models import KANConv2d, KANLinear


class Images(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return dict(x=4 * torch.randn(2, 6, 6, generator=generator))


class Model(BaseModel):
    def __init__(self, basis='BSpline', **args):
        super().__init__()
        torch.manual_seed(0)
        self.conv = KANConv2d(2, 4, 3, padding=1, basis=dict(type=basis, **args))
        self.fc = KANLinear(4, 2, basis=dict(type=basis, **args))

    def forward(self, x, mode='tensor'):
        x = self.conv(input=x)
        x = self.fc(self.fc(x.mean((2, 3))) @ self.fc.weight)  # the layer is called twice
        return dict(loss_own=x.square().mean()) if mode == 'loss' else x


def runner(folder, hooks=(), model=None, max_iters=6, lr=1e-3, optimizer=None, **args) -> Runner:
    if args.get('resume'):
        allow_mmengine_globals()  # as our tools do
    return Runner(
        model=model or Model(), work_dir=str(folder), experiment_name='test', default_scope='mmengine',
        train_dataloader=dict(dataset=Images(), batch_size=2, num_workers=0, collate_fn=dict(type='default_collate'),
                              sampler=dict(type='DefaultSampler', shuffle=False)),
        train_cfg=dict(by_epoch=False, max_iters=max_iters),
        optim_wrapper=dict(optimizer=optimizer or dict(type='Adam', lr=lr)),
        randomness=dict(seed=0),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=3, by_epoch=False),
                           logger=dict(type='LoggerHook', interval=1)),
        custom_hooks=list(hooks), **args)


class Two(BaseModel):
    """As GANs have it: an optimizer for each of two models."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleDict(dict(a=Model(), b=Model()))

    def forward(self, x, mode='tensor'):
        return self.parts['a'](x, mode)

    def train_step(self, data, optim_wrapper):
        for name, part in self.parts.items():
            loss = part(data['x'], 'loss')['loss_own']
            optim_wrapper[name].update_params(loss)
        return dict(loss=loss.detach())
