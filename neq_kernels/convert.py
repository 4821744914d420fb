"""convert and revert: swap the class of a model's layers, in place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch

from torch import Tensor, nn
from torch.nn.utils import parametrize

from neq_kernels import first_forward, reach, tether
from neq_kernels.active import ActiveSet
from neq_kernels.layer import PROPAGATE, Chosen, NEqLayer
from neq_kernels.modules import CLASSES, sparse_class
from neq_kernels.sets import sets_of


def convert(
    model: nn.Module, *, exclude: str | Iterable[str] = (), propagate: str | None = None
) -> nn.Module:
    """Make the neurons of ``model`` freezable: its Linear, Conv and norm layers become sparse ones.

    In place: the same module objects, Parameters, hooks and state_dict keys; all neurons active.
    Converting again is harmless, and converts what was added since. What is left out, and why,
    stands in :func:`neq_kernels.report`.

    Args:
        model: any module, also a single layer.
        exclude: name patterns (``fnmatch``) of modules to leave alone with all that is in them,
            e.g. ``"head"`` or ``"*.norm?"``.
        propagate: "all" (the default: exact gradients) or "active" (dX too from active channels
            only, an approximation). None keeps what layers converted before have.

    Returns:
        ``model`` itself.

    Raises:
        TypeError: ``model`` is not a module, or a pattern not a string.
        ValueError: ``propagate`` is unknown, or a pattern of ``exclude`` matches nothing.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model: expected a torch.nn.Module, got {type(model).__name__}; "
            "convert the network itself, before making a state_dict or a function of it"
        )
    if propagate is not None and propagate not in PROPAGATE:
        raise ValueError(f"propagate: expected one of {', '.join(PROPAGATE)}, got {propagate!r}")
    patterns = [exclude] if isinstance(exclude, str) else list(exclude)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(
                f"exclude: expected name patterns such as 'head*', got {pattern!r}; "
                "see model.named_modules()"
            )
    names = [name for name, _ in model.named_modules()]
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            raise ValueError(
                f"exclude: expected patterns that match a module, but {pattern!r} matches none; "
                "see model.named_modules()"
            )
    reasons = _reasons(model, patterns)
    for name, module in model.named_modules():
        if isinstance(module, NEqLayer):
            if propagate is not None:
                module.propagate = propagate
        elif name in reasons:
            module.__dict__["_skip_reason"] = reasons[name]
        elif module._parameters.get("weight") is not None and (sparse := sparse_class(module)):
            module.__dict__.pop("_skip_reason", None)
            module.__class__ = sparse
            assert isinstance(module, NEqLayer)
            module._adopt(propagate or "all")
    _attach(model)
    return model


def revert(model: nn.Module) -> nn.Module:
    """Give every converted layer of ``model`` its torch class back, in place; returns ``model``."""
    for module in model.modules():
        module.__dict__.pop("_skip_reason", None)
        if isinstance(module, NEqLayer):
            module.unconvert()
    _detach(model)
    return model


def _attach(model: nn.Module) -> None:
    # Module-level functions, and state in the model's __dict__: both survive deepcopy and pickle.
    _detach(model)
    model.__dict__["_neq_layers"] = list(converted_layers(model).values())
    model.register_forward_pre_hook(first_forward.before_forward, prepend=True)
    model.register_forward_hook(first_forward.after_forward, always_call=True)
    model.register_forward_hook(reach.after_forward)
    model.register_forward_hook(tether.after_forward)


def _detach(model: nn.Module) -> None:
    ours = (
        first_forward.before_forward,
        first_forward.after_forward,
        reach.after_forward,
        tether.after_forward,
    )
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for key in [k for k, hook in hooks.items() if hook in ours]:
            del hooks[key]
            model._forward_hooks_always_called.pop(key, None)
    for name in ("_neq_layers", "_forward_flops", "_unreached", "_seen_change"):
        model.__dict__.pop(name, None)


def converted_layers(model: nn.Module) -> dict[str, NEqLayer]:
    """The converted layers of ``model`` by name, in registration order."""
    return {name: m for name, m in model.named_modules() if isinstance(m, NEqLayer)}


def set_active(model: nn.Module, active: Mapping[str, Chosen]) -> None:
    """Choose the active neurons of several layers, all or nothing.

    Args:
        model: a converted model.
        active: what :meth:`NEqLayer.set_active` takes, by layer name. Other layers keep theirs.

    Raises:
        KeyError: a name is not a converted layer.
        TypeError, ValueError, IndexError, RuntimeError: as :meth:`NEqLayer.set_active`, with the
            layer's name.
    """
    if not isinstance(active, Mapping):
        raise TypeError(
            "active: expected a mapping of layer name to mask, channel numbers, ActiveSet or None, "
            f"got {type(active).__name__}"
        )
    layers = converted_layers(model)
    if active and not layers:
        raise KeyError(
            "active: expected a converted model, got one without converted layers; "
            "neq_kernels.convert(model) first"
        )
    checked: dict[str, ActiveSet] = {}
    masks: dict[str, Tensor] = {}  # together, for a single copy to the host
    for name, chosen in active.items():
        if name not in layers:
            raise KeyError(
                f"active: expected names of converted layers, got {name!r}; "
                f"get_active(model) lists the {len(layers)} there are, report(model) why others "
                "were skipped"
            )
        try:
            if layers[name].fits(chosen):
                masks[name] = chosen  # type: ignore[assignment]
            else:
                checked[name] = layers[name]._as_set(chosen)
        except (TypeError, ValueError, IndexError) as error:
            raise type(error)(f"layer {name!r}: {error}") from error
    checked.update(zip(masks, sets_of(list(masks.values())), strict=True))
    for name, chosen_set in checked.items():
        try:
            layers[name].check_graphs(chosen_set)
        except RuntimeError as error:
            raise RuntimeError(f"layer {name!r}: {error}") from error
    for name, chosen_set in checked.items():
        layers[name]._choose(chosen_set)


def get_active(model: nn.Module) -> dict[str, ActiveSet]:
    """The active set of each converted layer of ``model``, by name."""
    return {name: layer.active for name, layer in converted_layers(model).items()}


@contextmanager
def all_active(model: nn.Module) -> Iterator[None]:
    """Every neuron of every converted layer active inside, pruned ones too; then as before."""
    before = [(m, m.chosen, m.kept) for m in converted_layers(model).values()]
    try:
        for layer, _, _ in before:
            layer.set_kept(None)
            layer.set_active(None)
        yield
    finally:
        for layer, chosen, kept in before:
            if isinstance(layer, NEqLayer):  # a first forward may have found it unfit
                layer.set_active(chosen)
                layer.set_kept(kept)


def skipped(model: nn.Module) -> dict[str, str]:
    """Why each module with parameters of its own was not converted, by name."""
    return {
        name: m.__dict__["_skip_reason"]
        for name, m in model.named_modules()
        if "_skip_reason" in m.__dict__ and not isinstance(m, NEqLayer)
    }


def _reasons(model: nn.Module, patterns: list[str]) -> dict[str, str]:
    owners: dict[int, dict[int, str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), {})[id(module)] = name
    reasons = {}
    for name, module in model.named_modules():
        if isinstance(module, NEqLayer) or not any(
            p is not None for p in module._parameters.values()
        ):
            continue
        excluded = next((p for p in patterns if _within(name, p)), None)
        reason = f"excluded by {excluded!r}" if excluded else _why_not(module, owners)
        if reason:
            reasons[name] = reason
    return reasons


def _within(name: str, pattern: str) -> bool:
    """Whether ``pattern`` matches the module or one that it is part of."""
    parts = name.split(".")
    return any(fnmatch(".".join(parts[: n + 1]), pattern) for n in range(len(parts)))


def _why_not(module: nn.Module, owners: dict[int, dict[int, str]]) -> str | None:
    kind = type(module)
    if parametrize.is_parametrized(module):
        return "parametrized: its weight is computed anew at every use"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "lazy: run one forward, then convert again"
    if sparse_class(module) is None:
        known = next((base for base in kind.__mro__[1:] if base in CLASSES), None)
        if known:
            return f"{kind.__name__} is a subclass of {known.__name__}, whose forward may differ"
        return f"{kind.__name__} is not a layer whose neurons can be frozen"
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance"
    if module._parameters.get("weight") is None:
        return "it has no weight"
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) > 1:
        return f"normalized_shape {tuple(module.normalized_shape)} has no single channel axis"
    for parameter in module.parameters(recurse=False):
        if type(parameter) is not nn.Parameter:
            return f"its parameter is a {type(parameter).__name__}"
        if not parameter.is_floating_point():
            return f"its parameter is {parameter.dtype}"
        others = [name for key, name in owners[id(parameter)].items() if key != id(module)]
        if others:
            return f"a parameter is tied to {others[0]!r}"
    return None
