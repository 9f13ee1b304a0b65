"""Generator of the embedded model's training text: from a seed, without downloads."""

from hybridmoe.demo.corpus.base import Call, Dialogue, Split, Strand, Turn, is_held
from hybridmoe.demo.corpus.mix import FAMILIES, dialogue
from hybridmoe.demo.corpus.template import CHAT_TEMPLATE, messages, segments

__all__ = [
    "CHAT_TEMPLATE",
    "FAMILIES",
    "Call",
    "Dialogue",
    "Split",
    "Strand",
    "Turn",
    "dialogue",
    "is_held",
    "messages",
    "segments",
]
