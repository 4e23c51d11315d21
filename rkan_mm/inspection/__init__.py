"""What a trained network has learned: its functions as curves and formulas, and what they are worth."""

from .formulas import Formula, LayerFormula, formula
from .functions import LayerFunctions, kan_layers
from .statistics import Lines, Recorder, Statistics

__all__ = ['Formula', 'LayerFormula', 'LayerFunctions', 'Lines', 'Recorder', 'Statistics', 'formula', 'kan_layers']
