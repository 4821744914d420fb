"""What every converted layer has: its active set, in the forms that users and kernels read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from neq_kernels.active import ActiveSet, bound, capturing, check_bound, forget_bound
from neq_kernels.autograd import forward_key
from neq_kernels.planner import LayerPlan
from neq_kernels.zeroing import Zeroing

Chosen = Tensor | Sequence[bool] | Sequence[int] | ActiveSet | None
PROPAGATE = ("all", "active")


class _Changes:
    """Tells whether any layer's set or mode has changed: ``last`` is then another object."""

    last = object()

    def note(self) -> None:
        self.last = object()


changes = _Changes()


class NEqLayer(nn.Module):
    """A layer whose neurons (output channels) can be frozen one by one.

    Attributes:
        propagate: "all" (exact: gradients flow through frozen neurons) or "active" (dX too comes
            from the active channels alone; an approximation of the network's gradient).
        channel_axis: the axis of the output that counts neurons.
    """

    channel_axis: ClassVar[int] = -1
    origin: ClassVar[type[nn.Module]]
    weight: Any
    bias: Any

    _active: ActiveSet
    _chosen: ActiveSet
    _kept: ActiveSet | None = None
    _index: Tensor
    _count: Tensor
    _mask: Tensor
    _plan: LayerPlan
    _propagate: str

    @property
    def size(self) -> int:
        """Number of neurons."""
        return self._active.size

    @property
    def active(self) -> ActiveSet:
        """The neurons whose gradient is computed: those :attr:`chosen`, less the pruned ones."""
        return self._active

    @property
    def chosen(self) -> ActiveSet:
        """The neurons that :meth:`set_active` chose, pruned ones among them."""
        return self._chosen

    @property
    def kept(self) -> ActiveSet | None:
        """The neurons that pruning has left, None for all: others are never active."""
        return self._kept

    @property
    def index(self) -> Tensor:
        """What kernels read: int32 ``[size]``, the active channels, -1 beyond; on the weight's
        device, and filled in place when the set changes."""
        return self._index

    @property
    def propagate(self) -> str:
        return self._propagate

    @propagate.setter
    def propagate(self, value: str) -> None:
        if value not in PROPAGATE:
            raise ValueError(f"propagate: expected one of {', '.join(PROPAGATE)}, got {value!r}")
        self._propagate = value
        self._plan.forget()
        changes.note()

    def set_active(self, active: Chosen) -> None:
        """Choose the active neurons: a bool mask ``[size]``, channel numbers, an
        :class:`ActiveSet`, or None for all. Pruned ones stay frozen (:attr:`kept`). The lists that
        kernels read are filled in place.

        Raises:
            TypeError: neither bool nor integer.
            ValueError: wrong length or device, or a channel twice.
            IndexError: a channel out of range.
            RuntimeError: a captured CUDA graph would get this set wrong; see `forget_graphs`.
        """
        self._choose(self._as_set(active))

    def set_kept(self, kept: ActiveSet | None) -> None:
        """Take out the neurons that are not ``kept``, whatever :meth:`set_active` chooses, until
        another call; None: all may be active. It outlives :func:`neq_kernels.revert`."""
        self._check_graphs(self._chosen, kept)
        # On the module, where pruning leaves it for layers that are converted later.
        self.__dict__["_kept"] = kept
        self._choose(self._chosen)

    def forget_graphs(self) -> None:
        """Accept every set again: CUDA graphs captured with this layer so far are not going to be
        replayed. A graph holds for sets of as many neurons as the next bucket (8, 16, ... 64, then
        four steps per octave); captured with all of them active, or none, for that set alone."""
        forget_bound(self._index)

    def fits(self, active: Chosen) -> bool:
        """Whether ``active`` is a mask as it should be: a bool tensor ``[size]`` on the CPU or on
        the layer's device."""
        return (
            isinstance(active, Tensor)
            and active.dtype == torch.bool
            and active.shape == (self.size,)
            and active.device in (torch.device("cpu"), self._index.device)
        )

    def neuron_parameters(self) -> list[tuple[str, nn.Parameter, int]]:
        """(name, parameter, dimension that counts neurons) of each parameter made of neurons."""
        named = ((name, getattr(self, name, None)) for name in ("weight", "bias"))
        return [
            (name, p, self._neuron_dim(name)) for name, p in named if isinstance(p, nn.Parameter)
        ]

    def _neuron_dim(self, name: str) -> int:
        return 0

    def _as_set(self, active: Chosen) -> ActiveSet:
        size = self.size
        if active is None:
            return ActiveSet.full(size)
        if isinstance(active, Tensor) and active.device not in (
            torch.device("cpu"), self._index.device,
        ):  # fmt: skip
            raise ValueError(
                f"active: expected on the cpu or the layer's {self._index.device}, got "
                f"{active.device}; move it to one of them"
            )
        if not isinstance(active, ActiveSet):
            active = _set_of(active, size)
        if active.size != size:
            raise ValueError(
                f"active: expected {size} neurons, one per output channel, got {active.size}"
            )
        return active

    def _adopt(self, propagate: str) -> None:
        """Become sparse: called once, when convert has changed the class of the module."""
        self._plan = LayerPlan()
        self.propagate = propagate
        self._chosen = ActiveSet.full(self.weight.shape[self._neuron_dim("weight")])
        self._active = self._remaining()
        self._allocate()

    def resize(self, chosen: ActiveSet, kept: ActiveSet | None) -> None:
        """Take over both after neurons have been cut out of, or put back into, the weight."""
        self.__dict__["_kept"] = kept
        self._chosen = chosen
        self._active = self._remaining()
        self._allocate()

    def unconvert(self) -> None:
        """Become torch's own layer again; use :func:`neq_kernels.revert` for a whole model."""
        for name in ("_index", "_mask", "_count", "_plan", "_active", "_chosen", "_propagate"):
            self.__dict__.pop(name, None)
        self.__class__ = self.origin  # type: ignore[assignment]
        changes.note()

    def _allocate(self) -> None:
        # Made in inference mode, they could not be filled outside of it.
        size, device = self._active.size, self.weight.device
        with torch.inference_mode(False):
            self._index = torch.empty(size, dtype=torch.int32, device=device)
            self._mask = torch.empty(size, dtype=torch.bool, device=device)
            self._count = torch.tensor(0, device="cpu")
        self._fill(self._active)

    def _choose(self, chosen: ActiveSet) -> None:
        self.check_graphs(chosen)
        self._chosen = chosen
        active = self._remaining()
        # The same set again is no change: a graph made with it stays good.
        if active != self._active:
            self._fill(active)

    def check_graphs(self, chosen: ActiveSet) -> None:
        """Refuse ``chosen`` where a captured CUDA graph would get it wrong.

        Raises:
            RuntimeError: it would.
        """
        self._check_graphs(chosen, self._kept)

    def _check_graphs(self, chosen: ActiveSet, kept: ActiveSet | None) -> None:
        check_bound(self._index, (chosen if kept is None else chosen & kept).count)

    def _remaining(self) -> ActiveSet:
        return self._chosen if self._kept is None else self._chosen & self._kept

    def _fill(self, active: ActiveSet) -> None:
        self._active = active
        self._plan.forget()
        changes.note()
        with torch.no_grad():
            self._index.fill_(-1)[: active.count].copy_(active.index)
            self._count.fill_(active.count)
            self._mask.copy_(active.mask())

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self._follow_weight()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._follow_weight()

    def _follow_weight(self) -> None:
        if self._index.device != self.weight.device:
            self._allocate()

    def _mode(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> str:
        """How this forward meets its set: "plain" where torch's own layer does the same thing,
        "detached" where no gradient is wanted, "masked" under torch.func's transforms, else one of
        the modes of :mod:`neq_kernels.autograd`."""
        if not torch.is_grad_enabled():
            return "plain"
        trains = (weight is not None and weight.requires_grad) or (
            bias is not None and bias.requires_grad
        )
        if not trains and not (self._propagate == "active" and x.requires_grad):
            return "plain"
        if torch.compiler.is_compiling():
            return "opaque"
        if transforming():
            return "masked"
        if not self._active.is_empty:
            return "some"
        if not x.requires_grad:
            return "detached"
        if self._propagate == "active":
            return "cut" if distributed() else "detached"
        return "none"

    def _bind_graph(self) -> None:
        """A CUDA graph being captured here leaves out what depends on the set."""
        if not capturing(self._index) or not torch.is_grad_enabled():
            return
        if any(parameter.requires_grad for _, parameter, _ in self.neuron_parameters()):
            bound(self._index, self._active.count, self._active.count)

    def forward(self, x: Tensor) -> Tensor:
        # Compiled code must not look at the set: a guard on it would recompile at every change.
        if not torch.compiler.is_compiling() and self._active.is_full:
            self._bind_graph()
            return super().forward(x)
        weight, bias = self.weight, getattr(self, "bias", None)
        mode = self._mode(x, weight, bias)
        if mode in ("none", "cut", "detached"):
            self._bind_graph()
        if mode == "plain":
            return super().forward(x)
        if mode == "masked":
            return self._masked(x, bias)
        if mode == "detached":
            x = x.detach() if self._propagate == "active" else x
            return self._compute(x, weight.detach(), None if bias is None else bias.detach())
        if mode in ("none", "cut"):
            # No part of this node: a reducer that waits for them is answered by the tether.
            weight, bias = weight.detach(), None if bias is None else bias.detach()
            return self._sparse(mode, *cast_for_autocast(x, weight, bias))
        x, weight, bias = cast_for_autocast(x, weight, bias)
        if mode == "some" and self._plan.dense and self._goes_dense(x, weight, bias):
            return self._zeroed(x, weight, bias)
        return self._sparse(mode, x, weight, bias)

    def _goes_dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        """Whether the planner has settled that such a backward is torch's own, then zeroed."""
        needed = x.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad
        return forward_key(x, needed) in self._plan.dense

    def _zeroed(self, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        """The layer's output by torch's own operations, whose backward then zeroes the gradients'
        frozen rows."""
        plan = self._plan
        if plan.zeroing is None:
            dim = self._neuron_dim("weight")
            plan.zeroing = Zeroing(self._index, self._count, self._mask, dim)
        y = self._compute(x, weight, bias)
        plan.zeroing.attach(y, x, weight, bias)
        return y

    def _masked(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The same gradients from torch's own differentiable operations, frozen rows included in
        the work: what every transform of torch.func can see through."""
        weight = self._mask_rows(self.weight, "weight")
        if bias is not None:
            bias = self._mask_rows(bias, "bias")
        y = self._compute(x, weight, bias)
        if self._propagate == "active":
            y = torch.where(self._along(y, self.channel_axis), y, y.detach())
        return y

    def _mask_rows(self, parameter: Tensor, name: str) -> Tensor:
        mask = self._along(parameter, self._neuron_dim(name))
        return torch.where(mask, parameter, parameter.detach())

    def _along(self, tensor: Tensor, axis: int) -> Tensor:
        """The set as a mask that broadcasts along ``axis`` of ``tensor``."""
        shape = [1] * tensor.dim()
        shape[axis] = -1
        return self._mask.view(shape)

    def _compute(self, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        """The layer's output, as torch's own layer computes it from these parameters."""
        raise NotImplementedError

    def _sparse(self, mode: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's output through the Function that computes the active rows only."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, active={self._active.count}/{self.size}"


def _set_of(active: Any, size: int) -> ActiveSet:
    if hasattr(active, "__array__"):
        active = torch.as_tensor(active)
    if isinstance(active, Tensor):
        is_mask = active.dtype == torch.bool
    elif isinstance(active, Sequence) and not isinstance(active, str):
        flags = [isinstance(item, bool) for item in active]
        is_mask = bool(flags) and all(flags)
        if any(flags) and not is_mask:
            raise TypeError("active: expected all bool or all integers, got a mixture of both")
    else:
        raise TypeError(
            "active: expected a bool mask, channel numbers, an ActiveSet or None for all, got "
            f"{type(active).__name__}; wrap a single channel in a list"
        )
    if is_mask:
        return ActiveSet.from_mask(torch.as_tensor(active))
    return ActiveSet.from_index(active, size)


def cast_for_autocast(x: Tensor, *parameters: Tensor | None) -> tuple[Any, ...]:
    """What autocast would hand to the layer's operator, as differentiable casts."""
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return x, *parameters
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        t if t is None or t.dtype == torch.float64 or not t.is_floating_point() else t.to(dtype)
        for t in (x, *parameters)
    )


def transforming() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation is at work, which see
    through torch's own operations only."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def distributed() -> bool:
    """Whether processes train together: a reducer may then wait for every parameter, and layers
    without a gradient must answer it. Not asked of DDP itself, whose forward is over when a root
    hook or a checkpoint's recomputation runs."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
