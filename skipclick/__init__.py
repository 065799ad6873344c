"""SkipClick: interactive segmentation from clicks (Schön et al., arXiv 2501.07960)."""

from skipclick.checkpoint import load_checkpoint
from skipclick.predictor import Predictor
from skipclick.prompts import Click

__all__ = ["Click", "Predictor", "__version__", "load_checkpoint"]

__version__ = "0.1.0"
