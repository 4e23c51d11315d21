"""What a trained network has learned: its functions as curves and formulas, and what they are worth."""

from .branch import Branch, BranchRecorder, bridges
from .cam import BoxTarget, ClassTarget, activation_map, cam_layer
from .comparison import Changes, changes
from .fields import receptive_field, square_with
from .formulas import Formula, LayerFormula, formula
from .functions import LayerFunctions, kan_layers
from .statistics import Lines, Recorder, Statistics
from .swap import at_rest, straightened, without_block, without_functions
from .symbolic import Fit, best, fit_forms, fit_layer, lock, substituted

__all__ = [
    'BoxTarget', 'Branch', 'BranchRecorder', 'Changes', 'ClassTarget', 'Fit', 'Formula', 'LayerFormula',
    'LayerFunctions', 'Lines', 'Recorder', 'Statistics', 'activation_map', 'at_rest', 'best', 'bridges', 'cam_layer',
    'changes', 'fit_forms', 'fit_layer', 'formula', 'kan_layers', 'lock', 'receptive_field', 'square_with',
    'straightened', 'substituted', 'without_block', 'without_functions',
]
