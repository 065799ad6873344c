"""Keeps these tests out of a plain pytest run: they have an environment of their own (see `make e2e`)."""

import shutil
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from .label_studio import LabelStudio, label_studio
from .processes import OUTPUT

# Not a skip: without the driver `make e2e` then runs no tests, and pytest counts that as failure.
collect_ignore = (
    []
    if find_spec("playwright")
    else [
        "test_click_to_mask.py",
        "test_finetune.py",
        "test_mask_tags.py",
        "test_proposals.py",
        "test_small_object.py",
        "test_ui.py",
    ]
)


@pytest.fixture(scope="session")
def studio() -> Iterator[LabelStudio]:
    """A fresh Label Studio, and an empty output folder."""
    shutil.rmtree(OUTPUT, ignore_errors=True)
    with label_studio(OUTPUT) as running:
        yield running


@pytest.fixture(scope="session")
def api_key(studio: LabelStudio) -> str:
    """The one key of the one user: Label Studio hands out no second one while it is valid."""
    return studio.personal_access_token()
