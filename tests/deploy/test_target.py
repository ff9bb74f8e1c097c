"""The release that a rollback goes to, by its place among those kept."""

from __future__ import annotations

import pytest

from erless.deploy.target import place_to_restore
from erless.errors import NotDeployedError

KEPT = ["c3" * 32, "b2" * 32, "a1" * 32]


def test_a_rollback_goes_to_the_release_before_the_current_one() -> None:
    assert place_to_restore(KEPT, 0, None) == 1
    assert place_to_restore(KEPT, 1, None) == 2


def test_a_digest_may_be_cut_short() -> None:
    assert place_to_restore(KEPT, 2, "c3c3") == 0


@pytest.mark.parametrize(
    ("current", "prefix", "reason"),
    [
        (None, None, "nothing is deployed here"),
        (2, None, "no release is kept from before the current one"),
        (0, "dd", "no kept release begins with 'dd'; kept are c3c3c3c3c3c3, b2b2b2b2b2b2"),
    ],
)
def test_where_there_is_no_such_release(
    current: int | None, prefix: str | None, reason: str
) -> None:
    with pytest.raises(NotDeployedError, match=reason):
        place_to_restore(KEPT, current, prefix)
