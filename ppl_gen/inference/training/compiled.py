"""The loss of a training step with its gradients, without running Pyro's handlers each time."""

from __future__ import annotations

import math
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from pathlib import Path
from typing import Any, Protocol

import pyro
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_gen.core.scope import unchecked
from ppl_gen.inference.training.record import CannotRecord, Recording, record

__all__ = ["LossAndGradients"]

# Batches of so many shapes, or states of the pair, get a recording of their own.
_MOST_RECORDINGS = 6
# A recording is compared with a run of the pair in calls 2, 4, 8, ... and then so often.
_CHECK_INTERVAL = 512
# Matrix products and convolutions, which are most of what a network costs.
_PRODUCTS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
    torch.ops.aten.convolution.default,
    torch.ops.aten.convolution_backward.default,
}
_SIMPLE = (bool, int, float, str, type(None))


class Objective(Protocol):
    """What is minimised."""

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """What holds all parameters and buffers that take part."""
        ...

    @property
    def schedule(self) -> Callable[[float], float] | None:
        """The weight of the KL part by the share of the steps that are done, if it changes."""
        ...

    @property
    def repeatable(self) -> bool:
        """Whether the operators of one step can be run again for the next."""
        ...

    def loss(self, batch: Any, progress: float = 1.0) -> torch.Tensor:
        """Return an estimate of the loss of the whole data, ()."""
        ...

    def weighed_loss(self, batch: Any, weight: float | torch.Tensor = 1.0) -> torch.Tensor:
        """Return the same at a weight of the KL part."""
        ...


class LossAndGradients:
    """Loss and gradients of an objective on a batch, its operators recorded once.

    The first batch of each shape is run through model, guide and backward pass once, and the
    operators that PyTorch ran are written down. From then on these alone are run, on the same
    random numbers: loss and gradients are those of the pair itself. In the second call, the
    fourth, the eighth, and later every 512th, they are compared with a run of the pair. Where they
    differ, or where the operators depend on values of the data, the latents or the parameters
    (`if z.mean() > 0`), the pair is run in every step instead, and a warning says why.

    Attributes of modules are looked at in each call, and new values are followed. Other numbers
    that a model reads from outside of its arguments are taken for constants until the next
    comparison.

    Args:
        objective: The objective.
        parameters: What is trained; gradients are left in their `grad`.
        compile: Whether to have the operators fused by torch.compile, which takes ten seconds or
            more, and a C++ compiler or Triton.
        autocast: Dtype to compute matrix products and convolutions of float32 tensors in, such as
            torch.bfloat16. Their results, and all else, stay float32. None: float32 as well.

    Example:
        >>> from ppl_gen.inference.objectives import PairObjective
        >>> from ppl_gen.models import VAE
        >>> pair, batch = VAE(image_shape=(2, 2), latent_size=1), {"x": torch.rand(5, 2, 2)}
        >>> step = LossAndGradients(PairObjective(pair, batch, 1), list(pair.parameters()))
        >>> step(batch).shape, next(pair.parameters()).grad.shape
        (torch.Size([]), torch.Size([400, 4]))
    """

    def __init__(
        self,
        objective: Objective,
        parameters: Sequence[nn.Parameter],
        *,
        compile: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.objective = objective
        self.parameters = list(parameters)
        self.compile = compile
        self.autocast = autocast
        self.reason: str | None = None
        """Why the pair is run in every step; None while it is not."""
        first = self.parameters[0]
        self._weight = torch.ones((), dtype=first.dtype, device=first.device)
        self._programs: dict[tuple[Any, ...], _Program] = {}
        self._num_recorded = 0
        self._state: list[tuple[Any, Any]] = []
        self._trained: list[bool] = []

    def __call__(self, batch: Any, progress: float = 1.0) -> torch.Tensor:
        """Return the loss, (), and leave its gradients in the parameters' `grad`.

        Args:
            batch: A mini-batch, or all of the data: tensors by name; what the objective takes.
            progress: Share of the steps that are done.
        """
        schedule = self.objective.schedule
        if schedule is not None:
            self._weight.fill_(schedule(progress))
        tensors: list[torch.Tensor] = []
        key = tuple(_flatten(batch, tensors))
        program = self._program(key, batch, tensors, progress)
        if program is None:
            return self._eager(batch, progress)
        program.calls += 1
        if not program.is_due:
            return self._give(program.run(tensors))
        return self._compared(program, batch, tensors, progress)

    def _compared(
        self, program: _Program, batch: Any, tensors: Sequence[torch.Tensor], progress: float
    ) -> torch.Tensor:
        """Run both the recording and the pair; the result is the recording's, if they agree."""
        device = self._weight.device
        written = [*self._buffers(), *program.recording.written]
        before = _noise(device), [tensor.clone() for tensor in written]
        found = program.run(tensors)
        after = _noise(device), [tensor.clone() for tensor in written]
        _put(*before, written, device)
        loss = self._eager(batch, progress)
        expected = [loss, *(p.grad for p in self.parameters), *written, torch.get_rng_state()]
        if not _close([*found, *after[1], after[0][0]], expected, self.autocast):
            self._give_up("they give another loss or gradient than the pair does, on other data")
            return loss
        # Where a comparison is made is to have no effect: it is elsewhere after a resumption.
        _put(*after, written, device)
        return self._give(found)

    def _give(self, outputs: Sequence[torch.Tensor | None]) -> torch.Tensor:
        loss, *gradients = outputs
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        assert loss is not None
        return loss

    # ---- the pair itself

    def _eager(self, batch: Any, progress: float) -> torch.Tensor:
        """Run the pair and its backward pass."""
        for parameter in self.parameters:
            parameter.grad = None
        with unchecked(), self._products():
            loss = self.objective.loss(batch, progress)
            loss.backward()
        return loss.detach()

    def _products(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.autocast is None else _Products(self.autocast)

    def _outputs(self, batch: Any, progress: float) -> list[torch.Tensor | None]:
        """Return loss and gradients, in memory of their own and in the layout of the parameters."""
        with self._products():
            if self.objective.schedule is None:
                loss = self.objective.loss(batch, progress)
            else:
                loss = self.objective.weighed_loss(batch, self._weight)
            trained = [p for p in self.parameters if p.requires_grad]
            gradients = torch.autograd.grad(loss, trained, allow_unused=True)
        found = dict(zip(map(id, trained), gradients, strict=True))
        owned: set[int] = set()
        outputs: list[torch.Tensor | None] = [loss.detach().clone()]
        for parameter in self.parameters:
            gradient = found.get(id(parameter))
            if gradient is not None:
                address = gradient.untyped_storage()._cdata
                if address in owned or gradient.stride() != parameter.stride():
                    gradient = torch.empty_like(parameter.detach()).copy_(gradient)
                owned.add(address)
            outputs.append(gradient)
        return outputs

    # ---- recordings

    def _program(
        self, key: tuple[Any, ...], batch: Any, tensors: list[torch.Tensor], progress: float
    ) -> _Program | None:
        if self.reason is not None or not self.objective.repeatable:
            return None
        trained = [parameter.requires_grad for parameter in self.parameters]
        if trained != self._trained or not _unchanged(self._state):
            self._programs.clear()
        self._trained = trained
        program = self._programs.get(key)
        if program is not None and program.is_current:
            return program
        self._num_recorded += 1
        if self._num_recorded > _MOST_RECORDINGS:
            self._give_up(
                f"batches have had more than {_MOST_RECORDINGS} shapes, or attributes of the pair "
                "so many values"
            )
            return None
        try:
            self._programs[key] = self._record(batch, tensors, progress)
        except CannotRecord as error:
            self._give_up(f"{error}{_line(error)}")
        return self._programs.get(key)

    def _record(self, batch: Any, tensors: Sequence[torch.Tensor], progress: float) -> _Program:
        device, buffers = self._weight.device, self._buffers()
        before = _noise(device), [buffer.clone() for buffer in buffers]
        copies = [_alike(tensor) for tensor in tensors]
        attributes = _state(self.objective.modules)

        def run(*inputs: torch.Tensor) -> list[torch.Tensor | None]:
            return self._outputs(_rebuilt(batch, iter(inputs)), progress)

        try:
            self._eager(batch, progress)  # what the first run of all sets up is no part of a step
            self._state = _state(self.objective.modules)
            changing = [*self.parameters, *buffers, self._weight]
            with unchecked():
                recording = record(run, copies, changing, plain=self.compile)
            if not _unchanged(self._state):
                changed = _what_changed(self._state)
                _put_attributes(attributes)
                raise CannotRecord(changed)
            return _Program(recording, batch, copies, compile=self.compile)
        except CannotRecord:
            raise
        except Exception as error:
            if self._num_recorded == 1 and not self._state:
                raise  # the pair itself does not run
            msg = f"they could not be recorded ({type(error).__name__}: {error})"
            raise CannotRecord(msg) from error
        finally:
            _put(*before, buffers, device)

    def _give_up(self, reason: str) -> None:
        self.reason = reason
        self._programs.clear()
        warnings.warn(
            "each training step runs model and guide anew, because their operators cannot be "
            f"recorded once and for all, which would be faster: {reason}.",
            UserWarning,
            stacklevel=4,
        )

    def _buffers(self) -> list[torch.Tensor]:
        return [buffer for module in self.objective.modules for buffer in module.buffers()]


class _Program:
    """A recording that runs."""

    def __init__(
        self, recording: Recording, batch: Any, inputs: Sequence[torch.Tensor], *, compile: bool
    ) -> None:
        self.recording = recording
        self.batch = batch  # whose values that are no tensors the recording is of
        self.calls = 0
        self._versions = [_version(tensor) for tensor in recording.watched]
        self._is_plain = not compile
        self._run: Callable[..., Sequence[torch.Tensor | None]] = recording.module.forward
        if compile:
            options: dict[str, str | int | bool | Callable[..., Any]] = {"fallback_random": True}
            self._run = torch.compile(
                recording.module, dynamic=False, fullgraph=True, options=options
            )
        elif inputs and inputs[0].is_cuda:
            self._run = _CudaGraph(self._run, [*inputs, *recording.given], len(inputs))

    @property
    def is_due(self) -> bool:
        """Whether it is time to compare it with a run of the pair."""
        calls = self.calls
        return calls > 1 and (calls & (calls - 1) == 0 or calls % _CHECK_INTERVAL == 0)

    @property
    def is_current(self) -> bool:
        """Whether the tensors that its constants were made of have kept their values."""
        watched = self.recording.watched
        return all(_version(t) == v for t, v in zip(watched, self._versions, strict=True))

    @torch.no_grad()
    def run(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor | None]:
        """Return loss and gradients."""
        # What autograd does for each operator, only to find nothing to do, is a fifth of a small
        # operator's time.
        with torch._C._AutoDispatchBelowAutograd() if self._is_plain else nullcontext():
            return self._run(*inputs, *self.recording.given)


class _CudaGraph:
    """A function as one CUDA graph: a single launch in place of one for each operator.

    Args:
        function: The function.
        inputs: Its inputs, whose memory the graph reads.
        num_inputs: How many of them are to be copied in each call; the others stay.
    """

    def __init__(
        self, function: Callable[..., Any], inputs: Sequence[torch.Tensor], num_inputs: int
    ) -> None:
        self.inputs = inputs[:num_inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.no_grad():
            with torch.cuda.stream(stream):
                function(*inputs)  # libraries set themselves up in their first call
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.outputs = function(*inputs)

    def __call__(self, *inputs: torch.Tensor) -> Sequence[torch.Tensor | None]:
        """Run the graph; the outputs are its own memory, but for the first."""
        for own, given in zip(self.inputs, inputs, strict=False):
            own.copy_(given)
        self.graph.replay()
        loss, *rest = self.outputs
        return [loss.clone(), *rest]


class _Products(TorchDispatchMode):
    """Computes matrix products and convolutions, forward and backward, in another dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype = dtype

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _PRODUCTS:
            return func(*args, **kwargs)
        if any(isinstance(a, torch.Tensor) and a.dtype != torch.float32 for a in args):
            return func(*args, **kwargs)
        cast = [a.to(self.dtype) if isinstance(a, torch.Tensor) else a for a in args]
        result = func(*cast, **kwargs)
        if isinstance(result, torch.Tensor):
            return result.float()
        return tuple(None if r is None else r.float() for r in result)


def _flatten(value: Any, tensors: list[torch.Tensor]) -> Iterator[Any]:
    """Yield what a recording of a batch is for, and append its tensors."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        yield value.shape, value.stride(), value.dtype, value.device
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield name
            yield from _flatten(item, tensors)
    elif type(value) in (list, tuple):
        yield type(value), len(value)
        for item in value:
            yield from _flatten(item, tensors)
    else:
        yield (type(value), value) if isinstance(value, _SIMPLE) else id(value)


def _rebuilt(value: Any, tensors: Iterator[torch.Tensor]) -> Any:
    """Return a batch with other tensors."""
    if isinstance(value, torch.Tensor):
        return next(tensors)
    if isinstance(value, Mapping):
        return {name: _rebuilt(item, tensors) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_rebuilt(item, tensors) for item in value)
    return value


def _state(modules: Sequence[nn.Module]) -> list[tuple[Any, Any]]:
    """Return what modules hold, each dictionary and list with a copy of it."""
    found: list[tuple[Any, Any]] = []
    for module in {id(m): m for root in modules for m in root.modules()}.values():
        held = vars(module)
        parts = [v for v in held.values() if isinstance(v, dict | list | set) and v]
        found += [(part, copy(part)) for part in (held, *parts)]
    return found


def _unchanged(state: Sequence[tuple[Any, Any]]) -> bool:
    try:
        return all(now == before for now, before in state)
    except (RuntimeError, ValueError):  # of tensors or arrays, which are others than before
        return False


def _what_changed(state: Sequence[tuple[Any, Any]]) -> str:
    names = [
        str(name)
        for now, before in state
        if isinstance(now, dict)
        for name in now.keys() | before.keys()
        if now.get(name) is not before.get(name)
    ]
    return f"each run changes an attribute of the pair ({', '.join(names) or 'a list'})"


def _put_attributes(state: Sequence[tuple[Any, Any]]) -> None:
    """Put numbers that modules count in back to where they were."""
    for now, before in state:
        if isinstance(now, dict):
            now |= {name: value for name, value in before.items() if isinstance(value, _SIMPLE)}


def _alike(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy that lies in memory as the tensor does, gaps between its elements included."""
    if 0 in tensor.stride():
        return tensor.clone()
    empty = torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
    return empty.copy_(tensor)


def _noise(device: torch.device) -> list[torch.Tensor]:
    """Return the state of the generators."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


@torch.no_grad()
def _put(
    noise: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    tensors: Sequence[torch.Tensor],
    device: torch.device,
) -> None:
    """Put generators and tensors to where they were."""
    torch.set_rng_state(noise[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(noise[1], device)
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _close(
    found: Sequence[torch.Tensor | None],
    expected: Sequence[torch.Tensor | None],
    lowest: torch.dtype | None,
) -> bool:
    """Whether two runs gave the same but for rounding: half of the digits of each tensor.

    Gradients that are zero but for rounding are compared on the scale of the others.
    """
    scales = [_largest(tensor) for tensor in expected]
    others = max(scales[1:], default=0.0)
    for ours, theirs, scale in zip(found, expected, scales, strict=True):
        if ours is None or theirs is None:
            if ours is not theirs:
                return False
            continue
        tolerance = 0.0
        if theirs.is_floating_point():
            eps = torch.finfo(lowest or theirs.dtype).eps
            tolerance = math.sqrt(eps) * scale + 10 * eps * others
        if not torch.allclose(ours, theirs, rtol=0.0, atol=tolerance, equal_nan=True):
            return False
    return True


def _largest(tensor: torch.Tensor | None) -> float:
    """Return the largest finite size of a tensor's elements."""
    if tensor is None or not tensor.is_floating_point() or not tensor.numel():
        return 0.0
    return float(tensor.detach().abs().nan_to_num(0.0, 0.0).max())


def _line(error: BaseException) -> str:
    """Return the line of the user's code that an error comes from, as the end of a message."""
    folders = [Path(module.__file__ or "").parent for module in (torch, pyro)]
    folders.append(Path(__file__).parents[2])
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if not any(folder in path.parents for folder in folders) and path.exists():
            return f" in {path.name}, line {frame.lineno} ({frame.name})"
    return ""
