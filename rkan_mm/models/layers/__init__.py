"""KAN layers in the place of PyTorch's, with their grids, penalties and pruning; attention and fusions."""

from . import basis
from .attention import CBAM, ECA, ELA, SE, GlobalContext, ShuffleAttention, SimAM
from .basis import *  # noqa: F403
from .folding import teach_folding
from .fusion import Addition, ContextGating, Gating, SEFusion
from .grouped_kan_conv import GroupedKANConv2d
from .kan_conv import KANConv1d, KANConv2d, KANConv3d, KANConvTranspose2d
from .kan_layer import KANLayer
from .kan_linear import KANLinear
from .shared_kan_conv import SharedKANConv2d
from .sparsity import prune, teach_stacking
from .whole_weights import teach_norms

__all__ = [
    'CBAM', 'ECA', 'ELA', 'SE', 'Addition', 'ContextGating', 'Gating', 'GlobalContext', 'GroupedKANConv2d',
    'KANConv1d', 'KANConv2d', 'KANConv3d', 'KANConvTranspose2d', 'KANLayer', 'KANLinear', 'SEFusion',
    'SharedKANConv2d', 'ShuffleAttention', 'SimAM', 'prune', *basis.__all__,
]

teach_folding()
teach_norms()
teach_stacking()
