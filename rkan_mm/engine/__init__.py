"""What mmengine runs with: hooks, loops, whole checkpoints, FSDP, and the errors that end a run."""

from .absent_figures_hook import AbsentFiguresHook
from .atomic_backend import AtomicBackend
from .autocast_optim_wrapper import AutocastOptimWrapper
from .channels_last_hook import ChannelsLastHook
from .checkpoint_form import CheckpointFormHook
from .checkpoint_hook import ResumableCheckpointHook
from .fsdp_strategy import ResumableFSDPStrategy
from .grid_update_hook import KANGridUpdateHook
from .loops import ResumableEpochLoop, ResumableIterLoop
from .loss_check_hook import LossCheckHook
from .regularization_hook import KANRegularizationHook
from .run_error import RunError
from .safe_globals import allow_mmengine_globals
from .summary import RunSummaryHook
from .visualization_hook import KANVisualizationHook
from .wrap_policy import wrap_classes

__all__ = ['AbsentFiguresHook', 'AtomicBackend', 'AutocastOptimWrapper', 'ChannelsLastHook', 'CheckpointFormHook',
           'KANGridUpdateHook', 'KANRegularizationHook', 'KANVisualizationHook', 'LossCheckHook',
           'ResumableCheckpointHook', 'ResumableEpochLoop', 'ResumableFSDPStrategy', 'ResumableIterLoop', 'RunError',
           'RunSummaryHook', 'allow_mmengine_globals', 'wrap_classes']
