"""The settings of a step, as a user gave them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from distgrad.errors import BadArgument
from distgrad.reports.groups import pattern_of
from distgrad.reports.outputs import FORMATS

COMPRESSIONS = ("none", "bf16", "auto")


@dataclass(frozen=True)
class StepConfig:
    """The settings of a `DistributedStep`, see there for what each one means.

    Attributes:
        groups: a compiled regular expression for each label.
    """

    micro_batch_size: int | None = None
    reduction: str = "mean"
    groups: Mapping[str, re.Pattern[str]] | None = None
    statistics: frozenset[str] = frozenset()
    on_nonfinite: str = "skip"
    max_skipped: int | None = None
    check_every: int = 0
    log_every: int = 0
    log_format: str = "text"
    jit_compile: bool = False
    shard_update: bool | str = "auto"
    compression: str = "none"

    def __post_init__(self) -> None:
        _require(self.micro_batch_size is None or self.micro_batch_size > 0, self, "micro_batch_size", "1 or more")
        _require(self.reduction in ("mean", "sum"), self, "reduction", '"mean" or "sum"')
        _require(self.on_nonfinite in ("skip", "raise", "apply"), self, "on_nonfinite", '"skip", "raise" or "apply"')
        _require(self.log_format in FORMATS, self, "log_format", '"text", "json" or "live"')
        _require(self.max_skipped is None or self.max_skipped > 0, self, "max_skipped", "1 or more, or None")
        _require(self.compression in COMPRESSIONS, self, "compression", '"none", "bf16" or "auto"')
        _require(self.check_every >= 0, self, "check_every", "0 or more")
        _require(self.log_every >= 0, self, "log_every", "0 or more")
        is_wish = isinstance(self.shard_update, bool) or self.shard_update == "auto"
        _require(is_wish, self, "shard_update", 'True, False or "auto"')


def groups_of(patterns: Mapping[str, str] | None) -> dict[str, re.Pattern[str]]:
    """Compile the regular expressions of `groups=`.

    Raises:
        BadArgument: one is no regular expression.
    """
    return {label: pattern_of(label, text) for label, text in (patterns or {}).items()}


def _require(holds: bool, config: StepConfig, name: str, allowed: str) -> None:
    if not holds:
        raise BadArgument(f"{name}={getattr(config, name)!r}", f"give {allowed}", everywhere=True)
