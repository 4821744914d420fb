"""The written rule: dense, packed or direct, where nothing was measured.

"packed" gathers the active channels of dY and multiplies only those. "direct" does without: the
native kernels for linear layers and convolutions that read active channels where they are;
"direct+dx" has such a kernel compute a linear layer's dX, too, of all channels, where "direct"
leaves it to torch.
"dense" computes every row and zeroes the frozen ones: right where leaving them out costs more than
it saves.

The rule is a cost model in nanoseconds. What packing saves is the arithmetic of the rows left out,
in whole blocks of channels, and the zeroing of those rows. What it costs is the bytes it moves (dY
read and packed, the rows spread into a full-shape gradient) and a fixed price for the calls. Packed
where it saves clearly more than it costs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

BLOCK = 8


@dataclass(frozen=True, slots=True)
class Geometry:
    """What decides the cost of one layer's backward.

    Attributes:
        kind: "linear" or "conv".
        device: kind of device, such as "cpu".
        dtype: of the output's gradient.
        positions: terms of each weight's sum: tokens, or N*H*W of the output.
        fan_in: weights per neuron.
        size, count: all neurons, active neurons.
        groups: of a convolution.
        kernel: weights per input channel of a neuron: the product of a convolution's kernel sizes.
        channels_last: whether channels are contiguous in the output's gradient.
        propagate: "all" or "active": whether dX, too, comes from the active channels alone.
        shape: sizes of the output's gradient without its channels.
        steps: stride and dilation of a convolution.
        needed: which of dX, dW, db are wanted.
        fused: whether one pass over the input and the output's gradient computes the rows of active
            neurons, without packing: the native kernel for depthwise convolutions.
        direct: whether there is another such kernel, for linear layers and convolutions without
            groups.
    """

    kind: str
    device: str
    dtype: torch.dtype
    positions: int
    fan_in: int
    size: int
    count: int
    groups: int = 1
    kernel: int = 1
    channels_last: bool = False
    propagate: str = "all"
    shape: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()
    needed: tuple[bool, ...] = (True, True, True)
    fused: bool = False
    direct: bool = False


@dataclass(frozen=True)
class Rates:
    """Speeds of a device: FLOPs and bytes per nanosecond (per thread on a CPU), and the price of
    packing's extra calls in nanoseconds, which no thread shares."""

    flops: float
    depthwise_flops: float
    bytes: float
    calls: float


# CPU: flops of a Zen 5 core with AVX-512, float32, bench/layers.py; the others of a Zen 3 core with
# AVX2. CUDA: an H200's datasheet, halved; nothing measured there.
RATES = {"cpu": Rates(130, 12, 6, 70_000), "cuda": Rates(4e5, 2e3, 2e3, 70_000)}
MARGIN, DEPTHWISE_MARGIN = 1.1, 2.5


@dataclass(frozen=True)
class FusedRates:
    """Nanoseconds of a thread for a depthwise convolution's gradients on a CPU: dense, per position
    and channel with a 3x3 kernel, and of a call; fused, for every channel there is and, on top, for
    every active one, and of a call."""

    dense: float
    dense_call: float
    channel: float
    active: float
    call: float


# By channels_last, where every channel is read, and propagate; fitted as DIRECT_RATES are.
FUSED_RATES = {
    (False, "all"): FusedRates(1.2, 326_000, 0.0, 0.4, 161_000),
    (False, "active"): FusedRates(2.3, 580_000, 0.13, 2.7, 630_000),
    (True, "all"): FusedRates(0.55, 215_000, 0.14, 0.12, 139_000),
    (True, "active"): FusedRates(1.64, 363_000, 0.69, 1.87, 545_000),
}


@dataclass(frozen=True)
class WayRates:
    """Speeds of one way to a weight gradient on a CPU: FLOPs per nanosecond of a thread, and its
    nanoseconds per number of x, of dY (those read) and of dW, and of a call."""

    flops: float
    inputs: float
    outputs: float
    weights: float
    call: float


# (dense, direct) of linear layers and of convolutions by channels_last: fitted to the layers of
# bench/train.py's networks, a tenth and a half of them active, on Zen 5 cores with AVX-512,
# float32 and cold caches; half of the predictions are within 9 %, nine in ten within 26 %.
DIRECT_RATES = {
    "linear": (WayRates(111, 0.9, 0.5, 0.5, 53_000), WayRates(154, 0.2, 0.2, 0.3, 91_000)),
    False: (WayRates(232, 0.4, 0.33, 1.4, 287_000), WayRates(149, 0.13, 0.3, 0.2, 138_000)),
    True: (WayRates(208, 0.27, 0.1, 1.8, 234_000), WayRates(158, 0.12, 0.2, 0.17, 101_000)),
}
# What the autograd Function costs that a dense layer, settled on hooks of torch's own backward,
# does without: forward included, with the caches that a network leaves cold; in nanoseconds.
FUNCTION = 100_000


def ways(geometry: Geometry) -> tuple[str, ...]:
    """How this geometry's backward may be computed."""
    if not geometry.direct:
        return "dense", "packed"
    # torch's convolutions compute dX of all channels as fast; of the active ones alone it is the
    # direct way's own.
    all_of_dx = geometry.kind == "linear" and geometry.propagate == "all" and geometry.needed[0]
    return ("dense", "packed", "direct", *(["direct+dx"] if all_of_dx else []))


def choose(geometry: Geometry) -> str:
    """The one of its :func:`ways` for this geometry."""
    if advantage(geometry) <= 1:
        return "dense"
    return "direct" if geometry.direct else "packed"


def advantage(geometry: Geometry) -> float:
    """What the better of the ways that leave out rows is worth beside the dense one: above 1 it is
    taken; 0: never."""
    return _direct_advantage(geometry) if geometry.direct else _packed_advantage(geometry)


def _direct_advantage(g: Geometry) -> float:
    """Of the direct way, which packing seldom beats, and never by far. That dX of the active
    channels alone saves about as much again changes little in their proportion."""
    dense, direct = DIRECT_RATES["linear" if g.kind == "linear" else g.channels_last]
    read = g.size if g.kind == "linear" or g.channels_last else g.count
    function = FUNCTION * torch.get_num_threads()
    sparse = _way_cost(g, direct, g.count, read) + function
    return _way_cost(g, dense, g.size, g.size) / (MARGIN * sparse)


def _way_cost(g: Geometry, rates: WayRates, rows: int, read: int) -> float:
    return (
        2 * g.positions * g.fan_in * rows / rates.flops
        + g.positions * g.fan_in / g.kernel * rates.inputs
        + g.positions * read * rates.outputs
        + g.fan_in * g.size * rates.weights
        + rates.call * torch.get_num_threads()
    )


def _packed_advantage(geometry: Geometry) -> float:
    """What packing saves, in units of what it must save to be worth its cost; 0: never packed."""
    g = geometry
    if g.fused and g.device == "cpu":  # nothing was measured elsewhere
        return _fused_advantage(g)
    depthwise = g.groups == g.size and g.groups > 1
    if g.groups > 1 and (not depthwise or g.device != "cpu"):
        # Regrouped convolutions fall off the vendor libraries' fast paths, and laying the groups
        # out anew reads the set on the host.
        return 0.0
    rates = RATES.get(g.device, RATES["cpu"])
    threads = torch.get_num_threads() if g.device == "cpu" else 1
    cost = _bytes_moved(g, depthwise) / rates.bytes + rates.calls * threads
    margin = DEPTHWISE_MARGIN if depthwise else MARGIN
    return _saved(g, depthwise, rates) / (margin * cost)


def _fused_advantage(g: Geometry) -> float:
    rates, threads = FUSED_RATES[g.channels_last, g.propagate], torch.get_num_threads()
    taps = g.kernel / 9
    dense = g.positions * g.size * taps * rates.dense + rates.dense_call * threads
    fused = g.positions * (g.size * rates.channel + g.count * taps * rates.active)
    return dense / (MARGIN * (fused + (rates.call + FUNCTION) * threads))


def _width(g: Geometry, depthwise: bool) -> int:
    # Vendor kernels compute whole blocks of channels; depthwise ones have nothing to block.
    return g.count if depthwise else min(-(-g.count // BLOCK) * BLOCK, g.size)


def _saved(g: Geometry, depthwise: bool, rates: Rates) -> float:
    """Nanoseconds of arithmetic less: but the input is read, and laid out for the vendor kernel,
    however few rows are computed, which bounds what a wide input and a narrow output can save."""
    per_row = 2 * g.positions * g.fan_in / (rates.depthwise_flops if depthwise else rates.flops)
    rows = _width(g, depthwise)
    inputs = 1.5 * g.positions * g.fan_in * g.groups / g.kernel * g.dtype.itemsize / rates.bytes
    if depthwise:
        inputs *= g.count / g.size
    saved = max(0.0, per_row * g.size - max(per_row * rows, inputs))
    zeroed = (g.size - g.count) * g.fan_in * g.dtype.itemsize / rates.bytes
    if g.propagate == "all":
        return saved + zeroed
    # dX saves as much again, and the dense way must first copy dY without its frozen channels.
    return 2 * saved + zeroed + 2 * g.positions * g.size * g.dtype.itemsize / rates.bytes


def _bytes_moved(g: Geometry, depthwise: bool) -> int:
    """dY read and packed, and the rows spread into full shape. A depthwise convolution packs its
    input's channels as well, and spreads dX."""
    rows = _width(g, depthwise)
    read = g.size if g.channels_last or g.kind == "linear" else g.count
    operands = (3 if g.propagate == "active" else 2) if depthwise else 1
    moved = operands * g.positions * (read + rows) + g.fan_in * (g.size + 2 * rows)
    return moved * g.dtype.itemsize
