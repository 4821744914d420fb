"""The converted layers of a model, as they were when the tracker was made."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from neq_kernels.active import ActiveSet
from neq_kernels.convert import converted_layers, set_active
from neq_kernels.layer import NEqLayer


class Layers:
    """Layers by name, in the model's order, and their active sets.

    Attributes:
        sizes: neurons of each layer, also of one that was given its torch class back since.

    Raises:
        ValueError: nothing in `model` is converted.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = converted_layers(model)
        if not layers:
            raise ValueError(
                f"model: expected converted layers, got {type(model).__name__} without any; "
                "call neq.convert(model) first"
            )
        self._model = model
        self._modules: dict[str, nn.Module] = {**layers}
        self.sizes = {name: layer.size for name, layer in layers.items()}

    def live(self) -> dict[str, NEqLayer]:
        """Those that are still converted: a first forward may have found some unfit."""
        return {name: m for name, m in self._modules.items() if isinstance(m, NEqLayer)}

    def check(self) -> None:
        """Raise RuntimeError where a layer was reverted, replaced or cut to another size."""
        for name, module in self._modules.items():
            reverted = not isinstance(module, NEqLayer) and "_skip_reason" not in module.__dict__
            if reverted or self._model.get_submodule(name) is not module:
                raise RuntimeError(
                    f"model: expected layer {name!r} to be converted as when the tracker was "
                    "made, and it is not any more; make a new Equilibrium after neq.convert(model)"
                )
            if isinstance(module, NEqLayer) and module.size != self.sizes[name]:
                raise RuntimeError(
                    f"model: expected {self.sizes[name]} neurons in layer {name!r}, as when the "
                    f"tracker was made, got {module.size}; what it remembers is of other neurons: "
                    "make a new Equilibrium (or Schedule) after neq.pruning.shrink"
                )

    def masks(self) -> dict[str, Tensor]:
        """The chosen sets as bool `[C]`; full where a layer is not converted any more."""
        full = {name: ActiveSet.full(size) for name, size in self.sizes.items()}
        sets = {name: layer.chosen for name, layer in self.live().items()}
        return {name: active.mask() for name, active in (full | sets).items()}

    def activate(self, sets: Mapping[str, ActiveSet]) -> None:
        """Set what differs, all or nothing; a graph made with a set that stays remains valid."""
        layers = self.live()
        changed = {
            name: active
            for name, active in sets.items()
            if name in layers and active != layers[name].chosen
        }
        set_active(self._model, changed)
