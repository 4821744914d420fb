"""The hooks that a plan needs, with their buffers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neq_kernels.pruning.shrink.hooks import (
    CONSTANT_INPUTS,
    CONSTANT_OUTPUTS,
    LIVE_OUTPUTS,
    ConstantInputs,
    ConstantOutputs,
    output_dim,
)
from neq_kernels.pruning.shrink.plan import Plan
from neq_kernels.pruning.shrink.sites import Site
from neq_kernels.pruning.shrink.spreads import Spread

BORDERS = "adds what removed constants gave behind its zero padding"
SPREADS = "sets its outputs between constants, for a sum"


@dataclass(frozen=True)
class Addition:
    """``buffers`` of the module called ``name``, in the sizes that are left, and the ``hook`` that
    works with them; ``what`` it does, in words."""

    module: nn.Module
    name: str
    buffers: dict[str, Tensor]
    hook: ConstantInputs | ConstantOutputs
    what: str

    def attach(self) -> Callable[[], None]:
        """Put the hook on, or only new buffers where it is on already; returns what undoes it."""
        own = self.module._buffers
        before = {name: own.get(name) for name in self.buffers}
        for name, tensor in self.buffers.items():
            self.module.register_buffer(name, tensor)
        handle: Any = None
        if any(tensor is None for tensor in before.values()):
            # Constant inputs belong to what the layer computes; of its outputs, whoever looks at
            # the layer is to see its own alone, so that those follow later.
            if isinstance(self.hook, ConstantInputs):
                handle = self.module.register_forward_hook(
                    self.hook, prepend=True, with_kwargs=True
                )
            else:
                handle = self.module.register_forward_hook(self.hook)

        def undo() -> None:
            if handle is not None:
                handle.remove()
            for name, tensor in before.items():
                if tensor is None:
                    del own[name]
                else:
                    own[name] = tensor

        return undo


def by_what(added: list[Addition]) -> dict[str, list[str]]:
    """Names of the modules that get a hook, by what it does."""
    found: dict[str, list[str]] = {}
    for addition in added:
        found.setdefault(addition.what, []).append(addition.name)
    return found


def additions(
    plan: Plan, sites: list[Site], spreads: list[Spread], model: nn.Module
) -> list[Addition]:
    """To be worked out before the layers are cut, and attached after it."""
    found = [_border(plan, site) for site in sites]
    found += [_spread(plan, spread, model.get_submodule(spread.name)) for spread in spreads]
    return [addition for addition in found if addition is not None]


def _border(plan: Plan, site: Site) -> Addition | None:
    if site.border is None or site.folds:
        return None
    gone = ~plan.kept(site.inputs, len(site.mask)) & site.mask & (site.value != 0)
    gone &= plan.needed(site)
    if not gone.any():
        return None
    weight = site.weight.tensor.detach()
    columns = gone.nonzero().flatten().to(weight.device)
    value = site.value[gone].to(weight.device).reshape([1, -1] + [1] * (weight.dim() - 2))
    total = (weight.double().index_select(1, columns) * value).sum(1, keepdim=True)
    if site.border.present is not None:
        total += site.border.present.tensor.double()
    rows = plan.kept(site.outputs, len(total)).nonzero().flatten().to(weight.device)
    buffers = {CONSTANT_INPUTS: total[rows].to(weight.dtype)}
    return Addition(site.border.module, site.name, buffers, site.border.hook, BORDERS)


def _spread(plan: Plan, spread: Spread, module: nn.Module) -> Addition | None:
    inner = plan.kept(spread.inner, len(spread.inner))
    outer = plan.kept(spread.outer, len(spread.outer))
    live = spread.places[inner]
    if not spread.present and len(live) == int(outer.sum()):
        return None
    writer = plan.writer(spread)
    weight = getattr(module, CONSTANT_OUTPUTS) if writer is None else writer.weight.tensor
    constants = torch.zeros(len(outer), dtype=torch.float64)
    if spread.present:
        constants = getattr(module, CONSTANT_OUTPUTS).to("cpu", torch.float64, copy=True)
    constants[spread.places[~inner]] = spread.value[~inner]
    place = (outer.cumsum(0) - 1)[live]
    buffers = {
        CONSTANT_OUTPUTS: constants[outer].to(weight),
        LIVE_OUTPUTS: place.to(weight.device),
    }
    dim = output_dim(module)
    assert dim is not None
    hook = ConstantOutputs(dim)
    return Addition(module, spread.name, buffers, hook, SPREADS)
