"""Fine-tuning: a head learns from a team's accepted masks, and is evaluated before it serves anyone.

    examples     accepted masks, split by image, so that what is held out stays held out
    annotators   who accepted them: annotators take turns, and each supplies a limited share
    views        each training image encoded once in a few views: the backbone never learns, so its features stay valid
    loop         simulated clicks as in training, replay of the starting model's answers, best weights by held-out NoC
    interpolate  weights between the starting ones and the learnt ones, if the retention set requires it
    gate         whether to promote the candidate: simulated clicks of it and the model in service, on held-out objects,
                 overall and by annotator, and on a retention set
    proposals    what accepted objects look like, and whether proposals based on it would help
    picture      a fine-tuning as a picture
    adapt        instead of all this, a few steps right after a mask was accepted, without evaluation

No Label Studio and no files: examples come in, a candidate comes out. What was tried is in docs/results/finetune.md.
"""

from train.finetune.config import FinetuneConfig, Progress
from train.finetune.examples import Example, TooFewError, split
from train.finetune.proposals import ProposalReport
from train.finetune.run import Candidate, Report, finetune

__all__ = [
    "Candidate",
    "Example",
    "FinetuneConfig",
    "Progress",
    "ProposalReport",
    "Report",
    "TooFewError",
    "finetune",
    "split",
]
