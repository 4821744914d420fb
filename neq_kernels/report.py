"""neq.report: what a converted model covers, what was left out and why, what each layer does."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from torch import nn

from neq_kernels import backends
from neq_kernels.convert import converted_layers, skipped
from neq_kernels.first_forward import forward_flops
from neq_kernels.layer import NEqLayer
from neq_kernels.reach import unreached

ENOUGH = 0.8
WHOLE = "(the model)"


@dataclass(frozen=True)
class LayerRow:
    """One converted layer: its set, and how its last backward computed the weight gradient."""

    name: str
    kind: str
    neurons: int
    active: int
    propagate: str
    path: str


@dataclass(frozen=True)
class Report:
    """What :func:`report` found. ``str()`` prints it.

    Attributes:
        coverage: share of the backward's FLOPs that are in converted layers, or None before the
            first eager forward. Counted as the share of the forward's: each product of the forward
            stands for two of the backward.
        layers: the converted layers, in registration order.
        skipped: module name -> why it was not converted.
        unreached: modules that no gradient reaches, because ``propagate="active"`` layers frozen
            whole cut them off.
    """

    coverage: float | None
    layers: tuple[LayerRow, ...]
    skipped: dict[str, str]
    unreached: tuple[str, ...]

    def __str__(self) -> str:
        if self.coverage is None:
            share = "share of backward FLOPs covered: unknown before the first eager forward"
        else:
            share = f"share of backward FLOPs covered: {self.coverage:.1%}"
        lines = [f"{share}; {len(self.layers)} layers converted, {len(self.skipped)} skipped"]
        if self.layers:
            width = max(len(row.name or WHOLE) for row in self.layers)
            lines.append(f"{'layer':{width}}  {'kind':12} {'active':>12}  propagate  path")
        for row in self.layers:
            name, active = row.name or WHOLE, f"{row.active}/{row.neurons}"
            lines.append(
                f"{name:{width}}  {row.kind:12} {active:>12}  {row.propagate:9}  {row.path}"
            )
        lines += [f"skipped {name or WHOLE}: {why}" for name, why in self.skipped.items()]
        lines += [f"no gradient reaches {name}" for name in self.unreached]
        return "\n".join(lines)


def report(model: nn.Module) -> Report:
    """Coverage, layers and skipped modules of a converted ``model``.

    Warns where converted layers hold less than 80 % of the backward's FLOPs: freezing neurons then
    cannot save much.
    """
    counted = forward_flops(model)
    coverage = None
    if counted is not None:
        layers, total = counted
        coverage = sum(layers.values()) / total if total else 0.0
        if coverage < ENOUGH:
            warnings.warn(
                f"only {coverage:.0%} of the backward's FLOPs are in layers whose neurons can "
                "freeze; print(report(model)) says what was skipped and why",
                stacklevel=2,
            )
    return Report(
        coverage=coverage,
        layers=tuple(_row(name, layer) for name, layer in converted_layers(model).items()),
        skipped=skipped(model),
        unreached=tuple(unreached(model)),
    )


def _row(name: str, layer: NEqLayer) -> LayerRow:
    return LayerRow(
        name=name,
        kind=layer.origin.__name__,
        neurons=layer.size,
        active=layer.active.count,
        propagate=layer.propagate,
        path=_path(layer),
    )


def _path(layer: NEqLayer) -> str:
    if layer.active.is_full:
        return "plain torch: all active"
    if layer.active.is_empty:
        return "none: no weight gradient"
    if layer.weight.dim() == 1:
        return "masked: all rows are a by-product of dX"
    plan = layer._plan
    if plan.path is None:
        return "no backward yet"
    if plan.why == "measuring":
        return f"{plan.path}, being compared"
    why = {
        "measured": "faster here as measured",
        "near": "faster at the nearest sizes measured",
    }.get(plan.why, "faster here by the rule")
    if plan.path == "dense":
        return f"dense, frozen rows zeroed: {why}"
    spatial = max(layer.weight.dim() - 2, 0)
    operator = "conv" if spatial else "linear"
    gradients = "backward" if layer.propagate == "active" else "wgrad"
    backend, _ = backends.resolve(
        f"{operator}_{gradients}", layer.weight.device.type, layer.weight.dtype, spatial
    )
    return f"{plan.path} ({backend}): {why}"
