"""Removing pruned neurons from a model, physically and exactly.

Why own code. Torch-Pruning follows autograd's graph to find which channels are coupled, and takes
out the ones it is told: a zeroed neuron that still gives a constant (its bias, its norm's beta)
would be removed with its constant. torch-simplify does propagate constants, but fuses batch norms
away (the result cannot be trained further), leaves grouped convolutions and their surroundings
alone, answers borders with bias maps that fit one resolution, and replaces Parameters. Neither says
why something stayed. Both would need a second analysis around them that is most of this one.

How it works, in the order of the modules here: ``trace`` records the operators of one forward (no
symbolic tracing, so Python in the model is no obstacle); ``known`` works out which channels are
constant before any input comes; ``axes`` which channels have to stay together; ``sites`` where they
meet weights; ``plan`` the smallest set of channels that computes the same; ``surgery`` cuts.

Two things stop channels from going, and a forward hook on the layer helps with each. A constant
that meets zero padding is no constant behind it, but a plane that depends on nothing but the size:
the convolution of ones with one weight per output and tap, exact at borders and at any resolution.
And a sum needs its channels in all of its branches: a branch that computes few of them sets them
into their places. Without hooks one constant channel is kept per such convolution, which carries
the others in its weights, as they are multiples of each other; and sums keep what is live in any
branch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from neq_kernels.example import samples
from neq_kernels.pruning.shrink import carry, spreads
from neq_kernels.pruning.shrink.additions import additions, by_what
from neq_kernels.pruning.shrink.changes import changes
from neq_kernels.pruning.shrink.draft import drafted
from neq_kernels.pruning.shrink.known import Knowledge
from neq_kernels.pruning.shrink.report import LayerChange, ShrinkReport
from neq_kernels.pruning.shrink.running import call, evaluating
from neq_kernels.pruning.shrink.sites import Site
from neq_kernels.pruning.shrink.surgery import Operation, cuts
from neq_kernels.pruning.shrink.trace import Graph, trace

__all__ = ["LayerChange", "ShrinkReport", "shrink"]

_LARGEST_ERROR = {torch.float64: 1e-8, torch.float32: 1e-4}
_LARGEST_ERROR_IN_HALF = 5e-2


def shrink(
    model: nn.Module,
    example_input: Any,
    *,
    multiple: int = 1,
    optimizer: Any = None,
    hooks: bool = True,
) -> ShrinkReport:
    """Remove the neurons of ``model`` whose weights are all zero, in place, keeping its output.

    A neuron with sum |w| = 0 gives a constant: its bias, or what the norm and activation behind it
    make of it. The constant goes into the next layer's bias, the neuron out of its layer, of the
    norm behind it and of the inputs of what reads it. So do neurons that nothing reads with a
    weight other than zero, and neurons whose inputs are all constant. Whole heads of attention go
    when all their values are constant. Exact in eval mode, for inputs of any size that the model
    takes, up to rounding.

    Module classes, Parameter objects, ``state_dict`` keys, hooks and converted layers stay (a layer
    without bias gets one if it needs it); sizes in a configuration object are not rewritten.
    ``.grad`` and pruning masks are cut too. Training goes on from there. The constants are those of
    eval mode: a batch norm in training mode would have made of a removed channel its beta, not what
    its running statistics make of it. What remembers neurons (an Equilibrium, a Schedule) has to be
    made anew.

    Some layers get a forward hook with buffers of the layer, in ``state_dict`` too, which are not
    trained: convolutions whose zero padding met constants, to add what those gave; layers that
    write few live channels into a sum, to set them between constants. What hooks that are
    registered later see of the latter has the channels of the sum, with ``prepend=True`` the
    layer's own.

    Args:
        model: traced with one forward in eval mode. Wrap it in DDP or compile it afterwards.
        example_input: a batch as the model takes it: a tensor, a tuple or list of arguments, or a
            mapping of keywords.
        multiple: round the number of neurons of each layer up to a multiple of this, by keeping
            some; 8 or 16 suit most vendor kernels.
        optimizer: the optimizer that trains ``model``: its state is cut likewise. A new bias joins
            the group of its weight. It may be wrapped, as for :func:`neq_kernels.protect`.
        hooks: False adds none, and keeps the channels that plain layers need.

    Returns:
        What was removed, and why the rest was not.

    Raises:
        TypeError: ``model`` is no module, ``example_input`` holds no tensor, ``optimizer`` is none,
            ``hooks`` is no bool.
        ValueError: ``multiple`` below 1; ``model`` is wrapped in DDP or compiled; a whole layer was
            pruned so that the output no longer depends on the input; the model's own forward
            decides by the values of its tensors; ``optimizer`` has state that cannot be cut.
        RuntimeError: the smaller model fails or computes something else (sizes written down in its
            forward); a pruning mask does not fit its parameter. In all cases the model is as
            before.
    """
    _check(model, example_input, multiple)
    if not isinstance(hooks, bool):
        raise TypeError(f"hooks: expected True or False, got {hooks!r}")
    stepping = None if optimizer is None else carry.unwrap(optimizer, model)
    masks = carry.Masks(model)
    before = sum(p.numel() for p in model.parameters())
    graph = trace(model, example_input)
    if hooks:
        spreads.prepare(graph, model)
    knowledge = Knowledge()
    for each in graph.calls:
        knowledge.learn(each)
    opaque = _opaque(model, graph, knowledge)
    problem = ""
    for bold in (True, False):
        draft = drafted(graph, knowledge, opaque, bold=bold, multiple=multiple, hooks=hooks)
        _check_connected(graph, draft.sites, knowledge)
        cut = cuts(draft.plan, draft.axes, draft.sites, draft.leaves)
        if stepping is not None:
            carry.check(stepping, cut)
        added = additions(draft.plan, draft.sites, draft.spreads, model)
        operation = Operation()
        try:
            operation.do(draft.plan, draft.sites, cut, added)
            error, problem = _compare(model, example_input, graph.result)
        except BaseException:
            operation.undo()
            raise
        if not problem:
            break
        operation.undo()
        if not draft.axes.dared:
            break
    if problem:
        raise RuntimeError(
            f"model: expected the same output without its zero neurons, but {problem}; sizes are "
            "probably written down in a forward(); the model is as before"
        )
    if stepping is not None:
        carry.carry(stepping, cut, operation.new_biases, model)
    masks.carry(cut)
    after = sum(p.numel() for p in model.parameters())
    notes = (
        [] if bold else ["channels that the model splits up were left whole: its sizes are fixed"]
    )
    changed = changes(draft.sites, draft.plan)
    return ShrinkReport(changed, (before, after), error, opaque, notes, by_what(added))


def _check(model: nn.Module, example_input: Any, multiple: int) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    samples(example_input)
    if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1:
        raise ValueError(f"multiple: expected an integer of at least 1, got {multiple!r}")
    for module in model.modules():
        if isinstance(module, (DistributedDataParallel, torch._dynamo.OptimizedModule)):
            raise ValueError(
                f"model: expected a plain module, got {type(module).__name__}, which relies on the "
                "sizes of its parameters; shrink the module inside, then wrap it again"
            )


def _opaque(model: nn.Module, graph: Graph, knowledge: Knowledge) -> dict[str, str]:
    """The modules to leave whole, with the reason."""
    found = {
        name: f"{name or 'the model'}: nn.MultiheadAttention fixes its sizes"
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
    }
    for each in graph.calls:
        if each.reads_value and not knowledge.of(each["self"]).mask.all():
            if not each.module:
                raise ValueError(
                    "model: expected a forward whose operations do not depend on the values of its "
                    "tensors, but the model's own forward reads some in Python (if, float(), "
                    ".item(), .tolist(), .numpy()); move that into a submodule, which is then left "
                    "whole, or out of the model"
                )
            what = "decides by the values of a tensor, which one forward cannot show"
            found[each.module] = f"{each.module} {what}"
    return found


def _check_connected(graph: Graph, found: list[Site], knowledge: Knowledge) -> None:
    """Raise where the output no longer depends on the input."""
    live, reached = set(graph.inputs), set(graph.inputs)
    for each in graph.calls:
        if not reached.isdisjoint(each.inputs):
            reached.update(each.outputs)
        if not live.isdisjoint(each.inputs):
            live.update(v for v in each.outputs if not knowledge.of(v).mask.all())
    if reached.isdisjoint(graph.outputs) or not live.isdisjoint(graph.outputs):
        return
    layers = [s for s in found if s.is_layer]
    whole = [f"{s.name} ({len(s.zero_rows)} neurons)" for s in layers if s.zero_rows.all()]
    what = f"all weights are zero in {', '.join(whole)}" if whole else "every path meets a constant"
    raise ValueError(
        f"model: expected an output that depends on the input, but {what}: the net is cut; keep at "
        "least one neuron of each layer when pruning"
    )


def _compare(model: nn.Module, example_input: Any, expected: Any) -> tuple[float, str]:
    """(largest relative error, what is wrong: empty if nothing is)."""
    try:
        with evaluating(model):
            result = call(model, example_input)
    except Exception as problem:
        return 0.0, f"its forward fails: {problem}"
    error = 0.0
    pairs = zip(tree_leaves(result), tree_leaves(expected), strict=True)
    for found, wanted in pairs:
        if not isinstance(wanted, Tensor) or not wanted.is_floating_point() or wanted.numel() == 0:
            continue
        if found.shape != wanted.shape:
            return 0.0, f"an output has shape {tuple(found.shape)}, not {tuple(wanted.shape)}"
        largest = wanted.abs().max().clamp(min=torch.finfo(wanted.dtype).tiny)
        relative = float(((found - wanted).abs().max() / largest).float())
        if not relative <= _LARGEST_ERROR.get(wanted.dtype, _LARGEST_ERROR_IN_HALF):
            return relative, f"an output differs by {relative:.1e} of its largest value"
        error = max(error, relative)
    return error, ""
