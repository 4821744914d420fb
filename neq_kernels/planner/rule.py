"""The written rule: dense, packed or direct, where nothing was measured.

"packed" gathers the active channels of dY and multiplies only those. "direct" does without: the
native kernel for convolutions with few active channels. "dense" computes every row and zeroes the
frozen ones: right where gathering costs more than the rows it saves.

The rule is a cost model in nanoseconds. What packing saves is the arithmetic of the rows left out,
in whole blocks of channels, and the zeroing of those rows. What it costs is the bytes it moves (dY
read and packed, the rows spread into a full-shape gradient) and a fixed price for the calls. Packed
where it saves clearly more than it costs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
        direct: whether there is another such kernel, for few active neurons without groups.
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
    """Nanoseconds of a thread per position and channel of a 3x3 depthwise weight gradient: dense,
    and fused for every channel there is and, on top, for every active one."""

    dense: float
    channel: float
    active: float


# A Zen 5 core with AVX-512, float32; bench/depthwise_wgrad.py. channels_last reads every channel.
FUSED_RATES = {False: FusedRates(1.1, 0.0, 1.2), True: FusedRates(0.8, 0.3, 1.4)}
FUSED_CALL = 15_000


# FLOPs per nanosecond of a thread, and nanoseconds per element of x, by channels_last: fitted to
# bench/conv_wgrad.py on a Zen 5 core with AVX-512.
DIRECT_FLOPS, DIRECT_STAGING, DIRECT_CALL = 150, {False: 0.16, True: 0.09}, 20_000
# Of the dense one on the same core: torch's convolutions do better than its products of matrices.
DENSE_FLOPS = 160


def ways(geometry: Geometry) -> tuple[str, ...]:
    """How this geometry's backward may be computed."""
    return ("dense", "packed", "direct") if geometry.direct else ("dense", "packed")


def choose(geometry: Geometry) -> str:
    """The one of its :func:`ways` for this geometry."""
    if advantage(geometry) <= 1:
        return "dense"
    return "packed" if _packed_advantage(geometry) >= _direct_advantage(geometry) else "direct"


def advantage(geometry: Geometry) -> float:
    """What the better of the ways that leave out rows is worth beside the dense one: above 1 it is
    taken; 0: never."""
    return max(_packed_advantage(geometry), _direct_advantage(geometry))


def _direct_advantage(g: Geometry) -> float:
    if not g.direct or g.propagate == "active":
        return 0.0
    threads = torch.get_num_threads()
    inputs = g.positions * g.fan_in / g.kernel
    direct = (
        2 * g.positions * g.fan_in * g.count / DIRECT_FLOPS
        + inputs * DIRECT_STAGING[g.channels_last]
        + DIRECT_CALL * threads
    )
    rows = _width(replace(g, count=g.size), depthwise=False)
    dense = 2 * g.positions * g.fan_in * rows / DENSE_FLOPS
    return dense / (MARGIN * direct)


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
    rates, threads = FUSED_RATES[g.channels_last], torch.get_num_threads()
    taps = g.kernel / 9
    dense = g.positions * g.size * taps * rates.dense
    fused = g.positions * (g.size * rates.channel + g.count * taps * rates.active)
    calls = float(FUSED_CALL * threads)
    if g.propagate == "active":
        # dX of the active groups as packed: they, too, shrink, but must be gathered and spread.
        speed = RATES["cpu"]
        packed = _bytes_moved(g, depthwise=True) / speed.bytes
        masked = 2 * g.positions * g.size * g.dtype.itemsize / speed.bytes
        fused += packed + dense * g.count / g.size
        dense = 2 * dense + masked
        calls += speed.calls * threads
    return dense / (MARGIN * fused + calls)


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
