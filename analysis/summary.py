"""The printed summary of a study's conclusions: plain text in blocks, every number from the tree of fits.json.

print(summary.text(conclusions))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def text(tree: Mapping[str, Any]) -> str:
    """All blocks, separated by blank lines."""
    return "\n\n".join(["\n".join(tree["answer"])] + [s["sentence"] for s in tree["sweeps"]])
