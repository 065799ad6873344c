"""Protects `make e2e` from tomorrow's releases: its environment is the locked one, which has all that it needs."""

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.locks import INSTALL, LOCKS, closure, installed, locked

pytestmark = pytest.mark.e2e


def test_this_environment_equals_the_lock_and_lacks_nothing() -> None:
    versions = locked([INSTALL, LOCKS / "e2e.txt"])
    assert installed() == versions, "`make distclean e2e` builds the environment of the lock"
    for requirement in closure([Requirement(name) for name in versions], versions):
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), str(requirement)
