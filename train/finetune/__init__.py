"""Fine-tuning: a head learns from a team's accepted masks, and is measured before anyone is served by it.

    examples     what comes in; split by image, so that what is held out stays held out
    annotators   whose objects they are: turns, and the largest share that one teaches
    views        each training image encoded once in a few views: the backbone never learns, so its features stay valid
    loop         simulated clicks as in training, replay of the starting model's answers, best weights by held-out NoC
    interpolate  part of the way back to the starting weights, where the retention set asks for it
    gate         candidate and model in service by the NoC simulation, on held-out objects, of all and by annotator, and
                 on a retention set
    proposals    what accepted objects look like, and whether proposals by it would help
    picture      the same as a picture
    adapt        a few steps right after an accepted mask instead, unmeasured

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
