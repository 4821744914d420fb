"""Which converted layers are neither measured nor touched."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Exclusion:
    """The excluded layers.

    Attributes:
        patterns: what the caller gave, or None for the default: the nn.Linear that runs last.
        names: the converted layers it stands for; for the default, known after the first pass.
        head: the layer the default has found.
    """

    patterns: tuple[str, ...] | None
    names: tuple[str, ...] = ()
    head: str | None = None

    @classmethod
    def of(
        cls, patterns: str | Sequence[str] | None, model: nn.Module, layers: Collection[str]
    ) -> Exclusion:
        """Match `patterns` with the names of `layers`.

        Raises:
            TypeError: not strings.
            ValueError: a pattern matches no module of `model`, or no layer is left.
        """
        if patterns is None:
            return cls(None)
        patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
        modules = [name for name, _ in model.named_modules()]
        for pattern in patterns:
            if not isinstance(pattern, str):
                raise TypeError(f"exclude: expected name patterns, got {type(pattern).__name__}")
            if not any(fnmatchcase(name, pattern) for name in modules):
                raise ValueError(
                    f"exclude: expected a pattern that matches a module, got {pattern!r}; "
                    f"converted are {', '.join(list(layers)[:4])}, ..."
                )
        names = tuple(n for n in layers if any(fnmatchcase(n, pattern) for pattern in patterns))
        return cls(patterns, names)._checked(layers)

    def settled(self, last_linear: str | None, layers: Collection[str]) -> Exclusion:
        """With the head found in the first pass; an unconverted one is never frozen anyway."""
        if self.patterns is not None or last_linear is None or last_linear not in layers:
            return self
        return replace(self, names=(last_linear,), head=last_linear)._checked(layers)

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        patterns = None if self.patterns is None else list(self.patterns)
        return {"exclude": patterns, "excluded": list(self.names), "head": self.head}

    def _checked(self, layers: Collection[str]) -> Exclusion:
        if len(self.names) == len(layers):
            raise ValueError(
                f"exclude: expected a converted layer left to measure, got all excluded: "
                f"{', '.join(self.names[:4])}; pass exclude=() to measure the last Linear too"
            )
        return self
