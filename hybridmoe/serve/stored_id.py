"""Ids of stored objects: random, behind a tag that tells which replica of a server made them."""

import re
import uuid

__all__ = ["OWN_ID", "TAG_CHARS", "new_id", "set_id_tag", "tag_of"]

# Ids made by this server, which cannot be guessed; clients number theirs, each from 1.
OWN_ID = re.compile(r"[a-z]{2,4}_[0-9a-f]{32}")
TAG_CHARS = 8  # of 32 hexadecimal digits: the others are 96 random bits
_tag = ""  # of this process


def new_id(prefix: str) -> str:
    """Make an id such as `resp_` and 32 hexadecimal digits."""
    return f"{prefix}_{_tag}{uuid.uuid4().hex[len(_tag) :]}"


def set_id_tag(tag: str) -> None:
    """Begin the ids that this process makes from now on with a tag."""
    global _tag
    assert re.fullmatch(f"[0-9a-f]{{{TAG_CHARS}}}", tag), tag
    _tag = tag


def tag_of(own_id: str) -> str:
    """Get the tag of the process that made an id; any digits where it had none."""
    return own_id.partition("_")[2][:TAG_CHARS]
