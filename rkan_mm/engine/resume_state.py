"""What a run needs, beside mmengine's checkpoints, to go on exactly as if it had not stopped.

The generators of random numbers of every rank, the seed of the sampler, the place in the epoch, whether the validation
that follows has been done, and how long early stopping has waited. It travels in the message hub, which every
checkpoint holds.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import EarlyStoppingHook
from torch.utils.data import DataLoader, Sampler

KEY = 'rkan_mm_resume_state'


def random_state() -> dict[str, Any]:
    """The generators of Python, numpy, torch and the current GPU, as plain data and tensors."""
    name, keys, *rest = np.random.get_state()
    state = dict(python=random.getstate(), numpy=(name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
                 torch=torch.get_rng_state())
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state['python']
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state['numpy']
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state['torch'].cpu())
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())


def sampler_of(dataloader: DataLoader) -> Sampler:
    return getattr(dataloader.batch_sampler, 'sampler', dataloader.sampler)


def batches_in(dataloader: DataLoader) -> int | None:
    """Batches of an epoch; None with an iterable data set of unknown length."""
    try:
        return len(dataloader)
    except TypeError:
        return None


def store(runner, batches_done: int, validated: bool, meta: dict) -> None:
    """Put the state into the message hub, for the checkpoint that is about to be saved; called by all ranks.

    Args:
        batches_done: of the current epoch; 0 between epochs.
        validated: whether the validation that may follow has been done.
        meta: of the checkpoint, with its ``epoch`` and ``iter``.
    """
    dataloader = runner.train_dataloader
    runner.message_hub.update_info(KEY, dict(
        random=all_gather_object(random_state()), seed=getattr(sampler_of(dataloader), 'seed', None),
        batches=batches_in(dataloader), batches_done=batches_done, validated=validated,
        early_stopping=[(hook.best_score, hook.wait_count) for hook in _stopping(runner)],
        at=(meta['epoch'], meta['iter'])))


def take(runner) -> dict[str, Any] | None:
    """The state of the checkpoint from which ``runner`` has resumed; its sampler's seed is set.

    Where the number of processes or batches has changed, so have the random numbers or the place in the epoch: what no
    longer holds is left out, and logged. So is a state of another step: who saves a checkpoint without `store` saves
    the one before with it.
    """
    state = runner.message_hub.runtime_info.pop(KEY, None)
    if state is None or runner.iter == 0:
        return None
    _go_on_waiting(runner, state.get('early_stopping', ()))
    sampler, mine = sampler_of(runner.train_dataloader), None
    if state['seed'] is not None and hasattr(sampler, 'seed'):
        sampler.seed = state['seed']
    here = runner.epoch, runner.iter
    if tuple(state.get('at', here)) != here:
        runner.logger.warning(f'The checkpoint is of iteration {runner.iter}, and what it holds of random numbers and '
                              f'of the place in the epoch is of iteration {state["at"][1]}: the run goes on with '
                              f'other random numbers, and by epochs from the beginning of epoch {runner.epoch + 1}')
        return None
    if len(state['random']) == get_world_size():
        mine = state['random'][get_rank()]
    else:
        runner.logger.warning(f'The checkpoint is of {len(state["random"])} processes, this run has '
                              f'{get_world_size()}: it goes on with other random numbers')
    done = state['batches_done']
    if done and state['batches'] != batches_in(runner.train_dataloader):
        runner.logger.warning(f'The checkpoint was saved within an epoch of {state["batches"]} batches, this run has '
                              f'{batches_in(runner.train_dataloader)}: the epoch starts again')
        done = 0
    return dict(random=mine, batches_done=done, validated=state['validated'])


def _stopping(runner) -> list[EarlyStoppingHook]:
    return [hook for hook in runner.hooks if isinstance(hook, EarlyStoppingHook)]


def _go_on_waiting(runner, states: Sequence[tuple[float, int]]) -> None:
    """Early stopping counts on from the checkpoint; where it had ended the run, it has."""
    hooks = _stopping(runner)
    for hook, (best, waited) in zip(hooks, states, strict=False) if len(hooks) == len(states) else ():
        hook.best_score, hook.wait_count = best, waited
        if waited >= hook.patience:
            runner.train_loop.stop_training = True
            runner.logger.warning(f'{hook.monitor} had not become better for {waited} validations when the checkpoint '
                                  'was saved, and early stopping ended the run: to go on, give EarlyStoppingHook a '
                                  f'patience above {waited}.')
