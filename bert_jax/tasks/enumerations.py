"""Settings that are one of a few words."""

import enum
from typing import TypeVar

from bert_jax.errors import UserError

Member = TypeVar("Member", bound=enum.StrEnum)


def member(kind: type[Member], value: str, key: str) -> Member:
    """The member that a setting names.

    Args:
      kind: what may be chosen.
      value: what was.
      key: the setting.

    Raises:
      UserError: there is no such member.
    """
    members = [str(each) for each in kind]
    if value not in members:
        raise UserError(f"{key}={value!r} is unknown; use one of {', '.join(members)}")
    return kind(value)
