"""Operators that move elements: joining, indexing, scattering, padding, backward steps of views."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ppl_gen.core.compiler.record import CannotCompile, Operation, Place
from ppl_gen.core.compiler.rules.lowering import (
    Lowering,
    constant,
    rule_for,
    shaped,
    with_axis,
    without_axis,
)

__all__: list[str] = []


@rule_for("_unsafe_view", "_linalg_check_errors")
def _nothing(lowering: Lowering, operation: Operation) -> None:
    """Do nothing: these return their argument's own memory, or none."""


@rule_for("cat")
def _concatenate(lowering: Lowering, operation: Operation) -> None:
    out = operation.out
    axis = operation["dim"] % len(out.shape)
    start = 0
    for part in operation["tensors"]:
        if part.shape == (0,):  # joins tensors of any number of axes
            continue
        lowering.loop(shaped(out, part.shape, out.strides, start * out.strides[axis]), "{0}", part)
        start += part.shape[axis]


@rule_for("stack")
def _stack(lowering: Lowering, operation: Operation) -> None:
    axis = operation["dim"] % len(operation.out.shape)
    for position, part in enumerate(operation["tensors"]):
        lowering.loop(without_axis(operation.out, axis, position), "{0}", part)


@rule_for("flip")
def _flip(lowering: Lowering, operation: Operation) -> None:
    source = operation["self"]
    strides, offset = list(source.strides), 0
    for dim in operation["dims"]:
        axis = dim % max(len(strides), 1)
        if strides:
            offset += (source.shape[axis] - 1) * strides[axis]
            strides[axis] = -strides[axis]
    lowering.loop(operation.out, "{0}", shaped(source, source.shape, strides, offset))


@rule_for("roll", "repeat")
def _rearranged(lowering: Lowering, operation: Operation) -> None:
    """Lower an operator by what it does to the elements' addresses."""
    source, *rest = operation.arguments.values()
    function = getattr(torch.Tensor, operation.base)
    lowering.moved(operation.out, source, function(source.addresses(), *rest))


@rule_for("tril", "triu")
def _triangle(lowering: Lowering, operation: Operation) -> None:
    source = operation["self"]
    function = getattr(torch, operation.base)
    mask = function(torch.ones(source.shape[-2:], dtype=torch.float64), operation["diagonal"])
    expression = "select({1} != splat(0), {0}, splat(0))"
    lowering.loop(operation.out, expression, source, constant(mask))


@rule_for("constant_pad_nd")
def _pad(lowering: Lowering, operation: Operation) -> None:
    source, widths, out = operation["self"], operation["pad"], operation.out
    lowering.loop(out, "{0}", operation["value"])
    # Widths come in pairs, the last axis first; negative ones cut.
    shape, into, origin = list(source.shape), 0, 0
    for pair in range(len(widths) // 2):
        axis = len(shape) - 1 - pair
        before, after = widths[2 * pair : 2 * pair + 2]
        shape[axis] += min(before, 0) + min(after, 0)
        origin += max(-before, 0) * source.strides[axis]
        into += max(before, 0) * out.strides[axis]
    part = shaped(source, shape, source.strides, origin)
    lowering.loop(shaped(out, shape, out.strides, into), "{0}", part)


# --- Backward steps of views: where the view of the output lies, the gradient goes.

_VIEWS: dict[str, Callable[..., Any]] = {
    "select": torch.ops.aten.select.int,
    "slice": torch.ops.aten.slice.Tensor,
    "diagonal": torch.ops.aten.diagonal.default,
    "unfold": torch.ops.aten.unfold.default,
}


def _view(place: Place, name: str, arguments: list[Any]) -> Place:
    model = torch.empty_strided(place.shape, place.strides, device="meta")
    view = _VIEWS[name](model, *arguments)
    return shaped(place, view.shape, view.stride(), int(view.storage_offset()))


@rule_for("select_backward", "slice_backward", "diagonal_backward")
def _view_backward(lowering: Lowering, operation: Operation) -> None:
    gradient, _, *arguments = operation.arguments.values()
    view = _view(operation.out, operation.base.removesuffix("_backward"), arguments)
    lowering.loop(operation.out, "splat(0)")
    lowering.loop(view, "{0}", gradient)


@rule_for("select_scatter", "slice_scatter", "diagonal_scatter")
def _view_scatter(lowering: Lowering, operation: Operation) -> None:
    base, source, *arguments = operation.arguments.values()
    view = _view(operation.out, operation.base.removesuffix("_scatter"), arguments)
    lowering.loop(operation.out, "{0}", base)
    lowering.loop(view, "{0}", source)


@rule_for("unfold_backward")
def _unfold_backward(lowering: Lowering, operation: Operation) -> None:
    gradient, _, *arguments = operation.arguments.values()
    lowering.loop(operation.out, "splat(0)")
    windows = _view(operation.out, "unfold", arguments).addresses()  # they may overlap
    lowering.scattered(operation.out, windows, gradient, add=True)


# --- Indices that are constant: tables of addresses.


def _constant(index: Place, operation: Operation) -> torch.Tensor:
    if index.live:
        msg = f"an index of {operation.name} depends on a latent site."
        raise CannotCompile(msg + operation.line)
    return index.tensor()


def _addresses(place: Place, indices: list[Place | None], operation: Operation) -> torch.Tensor:
    known = [None if index is None else _constant(index, operation) for index in indices]
    # The operator itself, since indexing in Python places a lone advanced axis elsewhere.
    addresses = torch.ops.aten.index.Tensor(place.addresses(), known)
    assert isinstance(addresses, torch.Tensor)
    return addresses


def _copied(lowering: Lowering, operation: Operation) -> None:
    """Start the output of an operator that returns a changed copy of its first argument."""
    if not operation.in_place:
        lowering.loop(operation.out, "{0}", operation["self"])


@rule_for("index")
def _index(lowering: Lowering, operation: Operation) -> None:
    source, indices = operation["self"], operation["indices"]
    found = _live_index(operation, indices)
    if found is None:
        lowering.moved(operation.out, source, _addresses(source, indices, operation))
    else:
        _indexed(source, *found).read(lowering, operation.out, source)


@rule_for("index_put")
def _index_put(lowering: Lowering, operation: Operation) -> None:
    indices, values, add = operation["indices"], operation["values"], operation["accumulate"]
    out = operation.out
    _copied(lowering, operation)
    if _is_mask(indices) and not add and values.shape in ((), (1,)):
        (mask,) = indices
        rest = len(out.shape) - len(mask.shape)
        mask = shaped(mask, (*mask.shape, *(1,) * rest), (*mask.strides, *(0,) * rest))
        value = shaped(values, (), ())
        lowering.loop(out, "select({1} != splat(0), {2}, {0})", out, mask, value)
        return
    found = _live_index(operation, indices)
    if found is None:
        addresses = _addresses(out, indices, operation)
        lowering.scattered(out, addresses, values, add=bool(add))
    else:
        _indexed(out, *found).write(lowering, out, values, add=bool(add))


@rule_for("index_select")
def _index_select(lowering: Lowering, operation: Operation) -> None:
    source, index = operation["self"], operation["index"]
    axis = operation["dim"] % max(len(source.shape), 1)
    if index.live:
        source, out = _filled(source), _filled(operation.out)
        _indexed(source, axis, _filled(index)).read(lowering, out, source)
    else:
        addresses = source.addresses().index_select(axis, _constant(index, operation))
        lowering.moved(operation.out, source, addresses)


@rule_for("index_add")
def _index_add(lowering: Lowering, operation: Operation) -> None:
    out, source, alpha = operation.out, operation["source"], operation["alpha"]
    _copied(lowering, operation)
    if alpha != 1:
        scaled = lowering.program.new(source.shape)
        lowering.loop(scaled, "{0} * {1}", source, alpha)
        source = scaled
    axis, index = operation["dim"] % max(len(out.shape), 1), operation["index"]
    if index.live:
        out, source = _filled(out), _filled(source)
        _indexed(out, axis, _filled(index)).write(lowering, out, source, add=True)
    else:
        addresses = out.addresses().index_select(axis, _constant(index, operation))
        lowering.scattered(out, addresses, source, add=True)


@rule_for("embedding")
def _embedding(lowering: Lowering, operation: Operation) -> None:
    weight, index = operation["weight"], operation["indices"]
    if index.live:
        _indexed(weight, 0, index).read(lowering, operation.out, weight)
    else:
        lowering.moved(operation.out, weight, weight.addresses()[index.tensor()])


@rule_for("embedding_dense_backward")
def _embedding_backward(lowering: Lowering, operation: Operation) -> None:
    out, gradient, index = operation.out, operation["grad_output"], operation["indices"]
    if operation["scale_grad_by_freq"]:
        raise CannotCompile(f"embedding by frequency has no rule.{operation.line}")
    lowering.loop(out, "splat(0)")
    if index.live:
        _indexed(out, 0, index).write(lowering, out, gradient, add=True)
    else:
        lowering.scattered(out, out.addresses()[index.tensor()], gradient, add=True)
    if operation["padding_idx"] >= 0:
        lowering.loop(without_axis(out, 0, operation["padding_idx"]), "splat(0)")


@rule_for("masked_select", "masked_scatter", "masked_scatter_backward")
def _masked(lowering: Lowering, operation: Operation) -> None:
    if operation["mask"].live:
        msg = f"the shape of a tensor depends on the value of a latent site ({operation.name})."
        raise CannotCompile(msg + operation.line)
    mask, out = operation["mask"].tensor(), operation.out

    def under_mask(place: Place) -> torch.Tensor:
        return place.addresses().masked_select(mask)

    if operation.base == "masked_select":
        lowering.moved(out, operation["self"], under_mask(operation["self"]))
        return
    if operation.base == "masked_scatter":
        _copied(lowering, operation)
        source, into = operation["source"], under_mask(out)
        taken = source.addresses().reshape(-1)[: len(into)]
    else:
        lowering.loop(out, "splat(0)")
        source = operation["grad_output"]
        taken = under_mask(source)
        into = out.addresses().reshape(-1)[: len(taken)]
    values = lowering.program.new((len(into),))
    lowering.moved(values, source, taken)
    lowering.scattered(out, into, values, add=False)


# --- Positions that depend on the vector, as that of a maximum or a change point: each is compared
# with every place along the axis.

_SAME = "(({1} == {2}) | ({1} + {3} == {2}))"  # the index, or counted from the end


def _is_mask(indices: list[Place | None]) -> bool:
    first = indices[0]
    return len(indices) == 1 and first is not None and first.live and first.dtype == torch.bool


def _live_index(operation: Operation, indices: list[Place | None]) -> tuple[int, Place] | None:
    """Return axis and index of the one index that depends on the vector, None if none does."""
    given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if not any(index.live for _, index in given):
        return None
    if len(given) > 1 or given[0][1].dtype == torch.bool:
        what = "a mask" if len(given) == 1 else "one of several indices"
        msg = f"{what} of {operation.name} depends on a latent site."
        raise CannotCompile(msg + operation.line)
    return given[0]


def _trailing(place: Place, axes: int = 1) -> Place:
    """Return a tensor with axes of size one at the end."""
    return shaped(place, (*place.shape, *(1,) * axes), (*place.strides, *(0,) * axes))


def _filled(place: Place) -> Place:
    """Return a tensor that has an axis at least."""
    return place if place.shape else _trailing(place)


class _Positions:
    """Elements of an axis at positions that depend on the vector.

    Args:
        shape: Shape of what is read or written.
        index: The positions, to be broadcast to the shape and one more axis.
        size: Length of the axis.
        spread: From the indexed tensor to one that is broadcast to the shape and the axis.
    """

    def __init__(
        self, shape: tuple[int, ...], index: Place, size: int, spread: Callable[[Place], Place]
    ) -> None:
        self.whole = (*shape, size)
        self.spread = spread
        positions = constant(torch.arange(size, dtype=torch.float64))
        self._compared = (index, positions, float(size))

    def read(self, lowering: Lowering, out: Place, source: Place) -> None:
        """Append what copies elements of the source at the positions to the output."""
        self._add(lowering, _trailing(out), self.spread(source), initial="splat(0)")

    def write(self, lowering: Lowering, out: Place, values: Place | float, *, add: bool) -> None:
        """Append what writes values at the positions, the last one wins, or adds them there."""
        target = self.spread(out)
        if add:
            self._add(lowering, target, _trailing(values) if isinstance(values, Place) else values)
            return
        source = values if isinstance(values, Place) else constant(torch.tensor(values))
        index, size = self._compared[0], self.whole[-1]
        last = len(self.whole) - 1

        def element(pointer: str, place: Place) -> str:
            missing = len(self.whole) - len(place.shape)
            steps = [
                f"j{missing + axis} * {stride}"
                for axis, (n, stride) in enumerate(zip(place.shape, place.strides, strict=True))
                if n != 1
            ]
            text = f"{pointer}[{' + '.join(steps) or 0}]"
            return text if place.live else f"splat({text})"

        def code(i: str, value: str, _: str, x: str) -> str:
            loops = "".join(
                f"for (long j{a} = 0; j{a} < {n}; ++j{a}) " for a, n in enumerate(self.whole)
            )
            at, to = element(i, index), element(x, target)
            here = f"({at} == splat(j{last})) | ({at} + splat({size}) == splat(j{last}))"
            return f"{loops}{{ {to} = select({here}, {element(value, _trailing(source))}, {to}); }}"

        operands = [index, _trailing(source), target]
        ranks = [len(place.shape) for place in (*operands, target)]
        lowering.routine(code, operands, [target], ranks)

    def _add(
        self, lowering: Lowering, out: Place, source: Place | float, initial: str | None = None
    ) -> None:
        expression = f"select({_SAME}, {{0}}, splat(0))"
        more = self._compared
        lowering.loop(out, expression, source, *more, update="+", initial=initial, shape=self.whole)


def _indexed(place: Place, axis: int, index: Place) -> _Positions:
    """Return the elements that an index picks along an axis, its own axes in their place."""
    shape = (*place.shape[:axis], *index.shape, *place.shape[axis + 1 :])

    def spread(place: Place) -> Place:
        size, stride = place.shape[axis], place.strides[axis]
        place = without_axis(place, axis)
        for _ in index.shape:
            place = with_axis(place, axis, 1, 0)
        return with_axis(place, len(place.shape), size, stride)

    beside = _trailing(index, len(shape) - axis - len(index.shape) + 1)
    return _Positions(shape, beside, place.shape[axis], spread)


def _along(place: Place, axis: int, index: Place) -> _Positions:
    """Return the elements that `gather` picks: one of an axis for each element of the index."""

    def spread(place: Place) -> Place:
        shape = tuple(1 if a == axis else n for a, n in enumerate(index.shape))
        strides = tuple(0 if a == axis else s for a, s in enumerate(place.strides))
        size, stride = place.shape[axis], place.strides[axis]
        return with_axis(shaped(place, shape, strides), len(shape), size, stride)

    return _Positions(index.shape, _trailing(index), place.shape[axis], spread)


@rule_for("gather")
def _gather(lowering: Lowering, operation: Operation) -> None:
    source, axis, index = operation["self"], operation["dim"], operation["index"]
    if index.live:
        source, index, out = _filled(source), _filled(index), _filled(operation.out)
        _along(source, axis % len(source.shape), index).read(lowering, out, source)
    else:
        addresses = source.addresses().gather(axis, index.tensor())
        lowering.moved(operation.out, source, addresses)


@rule_for("scatter", "scatter_add")
def _scatter(lowering: Lowering, operation: Operation) -> None:
    if operation.arguments.get("reduce") is not None:
        raise CannotCompile(f"operator {operation.name} has no rule.{operation.line}")
    out, axis, index = operation.out, operation["dim"], operation["index"]
    add = operation.base == "scatter_add"
    source: Any = operation.arguments.get("src", operation.arguments.get("value"))
    _copied(lowering, operation)
    if isinstance(source, Place):
        source = shaped(source, index.shape, source.strides)
    if index.live:
        out, index = _filled(out), _filled(index)
        source = _filled(source) if isinstance(source, Place) else source
        _along(out, axis % len(out.shape), index).write(lowering, out, source, add=add)
    else:
        addresses = out.addresses().gather(axis, index.tensor())
        lowering.scattered(out, addresses, source, add=add)
