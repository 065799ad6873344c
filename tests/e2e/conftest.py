"""Keeps these tests out of a plain pytest run: they have an environment of their own (see `make e2e`)."""

from importlib.util import find_spec

# Not a skip: without the driver `make e2e` then runs no tests, and pytest counts that as failure.
collect_ignore = [] if find_spec("playwright") else ["test_click_to_mask.py", "test_ui.py"]
