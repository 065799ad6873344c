"""A configuration whose training steps take milliseconds."""

from __future__ import annotations

from dataclasses import replace

from tests.support.small_models import SMALL_CONV
from tests.support.training_process import SMALL_VIT

CONFIG = replace(SMALL_VIT, model=SMALL_CONV, augment=replace(SMALL_VIT.augment, crop=64))
