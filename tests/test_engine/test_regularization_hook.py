"""Penalties of KAN layers in mmengine's runner."""

from types import SimpleNamespace

import pytest
import torch
from kan_runs import Images, Model, Two, runner
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch.testing import assert_close

from rkan_mm.engine import KANRegularizationHook
from rkan_mm.models.layers.curvature import curvature, input_range


@pytest.mark.parametrize('basis', ['BSpline', 'Chebyshev'])
def test_penalties_join_the_loss(tmp_path, basis):
    model = Model(basis)
    factors = dict(l1=0.1, entropy=0.2, smoothness=0.3)
    run = runner(tmp_path, [dict(type='KANRegularizationHook', **factors)], model, max_iters=1, lr=0.0)
    run.train()
    penalties = [layer.regularization() for layer in (model.conv, model.fc)]
    if basis == 'Chebyshev':  # whose second derivatives count, over the inputs that the layers have had
        x = torch.stack([Images()[i]['x'] for i in range(2)])
        pooled = model.conv(x).mean((2, 3))
        inputs = dict(conv=x, fc=torch.cat([pooled, model.fc(pooled) @ model.fc.weight]))
        penalties += [dict(smoothness=curvature(layer, input_range(layer, inputs[name])), l1=0, entropy=0)
                      for name, layer in (('conv', model.conv), ('fc', model.fc))]
        penalties = [dict(dict(smoothness=0), **penalty) for penalty in penalties]
    logged = run.message_hub
    for name, factor in factors.items():
        value = logged.get_scalar(f'train/loss_kan_{name}').current()
        assert_close(value, factor * sum(penalty[name] for penalty in penalties).item(), rtol=1e-4, atol=1e-6)
    own = model.train()(torch.stack([Images()[i]['x'] for i in range(2)]), mode='loss')['loss_own'].item()
    total = own + sum(logged.get_scalar(f'train/loss_kan_{name}').current() for name in factors)
    assert_close(float(logged.get_scalar('train/loss').current()), total, rtol=1e-5, atol=1e-6)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not model.fc._forward_pre_hooks
    assert not isinstance(model(torch.rand(1, 2, 6, 6)), dict)


@pytest.mark.parametrize('basis', ['BSpline', 'Chebyshev'])
def test_penalties_of_a_compiled_model_are_in_its_graph(basis):
    model, x, found = Model(basis).train(), torch.randn(2, 2, 6, 6), []
    hook = KANRegularizationHook(l1=0.1, entropy=0.1, smoothness=0.1)
    hook.before_train(SimpleNamespace(model=model))
    torch.compiler.reset()

    def backend(graph, inputs):
        found.append(graph)
        return graph.forward

    losses = torch.compile(lambda x: model(x, mode='loss'), backend=backend)(x)
    assert len(found) == 1
    assert_close(losses, model(x, mode='loss'))
    assert 'loss_kan_smoothness' in losses


@pytest.mark.parametrize(('model', 'said'), [(Two, 1), (Model, 0)])
def test_penalties_that_come_to_nothing(tmp_path, model, said):
    """Where a train_step calls parts of the model alone."""
    model = model()
    run, warnings = runner(tmp_path, [KANRegularizationHook(l1=1.0)], model), []
    if said:
        run.optim_wrapper = OptimWrapperDict(**{name: OptimWrapper(torch.optim.Adam(part.parameters(), 1e-3))
                                                for name, part in model.parts.items()})
    run.logger.warning = warnings.append
    run.train()
    assert len([each for each in warnings if 'KANRegularizationHook adds nothing' in each]) == said


def test_penalties_have_gradients(tmp_path):
    model = Model()
    runner(tmp_path, [KANRegularizationHook(l1=100.0)], model, max_iters=1, lr=0.0).train()
    before = model.conv.basis_weight.abs().mean().item()  # the seed draws the same weights again
    runner(tmp_path, [KANRegularizationHook(l1=100.0)], model).train()
    assert model.conv.basis_weight.abs().mean() < before
