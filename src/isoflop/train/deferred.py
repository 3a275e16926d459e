"""Weights that are drawn when they are wanted, so that no process ever holds a whole model that is to be divided.

While `Deferred` is on, constructors run as they are. A large tensor is filled as ever, so that the random numbers go
on as ever; then its memory is given back, and what filled it is noted: the operations, and the state of the generator
before each. `settle` takes memory and does the same again, bit for bit. What cannot be noted (reading a weight, filling
a part of it) settles the tensor first: that costs memory, never exactness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LEAST_BYTES = 1 << 16
"""Smaller tensors are simply made."""

aten = torch.ops.aten
OVERWRITES = {  # what was in the tensor before is gone
    aten.uniform_.default,
    aten.normal_.default,
    aten.zero_.default,
    aten.fill_.Scalar,
    aten.copy_.default,
}


@dataclass
class _Note:
    """What a tensor whose memory was given back is made of."""

    tensor: Tensor
    num_bytes: int
    fillings: list[tuple[Callable[[Tensor], object], Tensor | None]] = field(default_factory=list)
    """what to do to the tensor, and the state of the random numbers to begin with, if it draws any"""


class Deferred(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is on, CPU tensors made by `torch.empty` of `least_bytes` and more keep no memory until `settle`."""

    def __init__(self, least_bytes: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._least_bytes = LEAST_BYTES if least_bytes is None else least_bytes
        self._notes: dict[int, _Note] = {}
        self._is_busy = False
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def __enter__(self) -> Deferred:
        # It looks at what it drew and draws again; as a whole, it can be noted.
        self._trunc_normal = nn.init.trunc_normal_
        nn.init.trunc_normal_ = self._whole_trunc_normal
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self._scratch = torch.empty(0, dtype=torch.uint8)
        nn.init.trunc_normal_ = self._trunc_normal
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._is_busy:
            return func(*args, **kwargs)
        if func is aten.empty.memory_format:
            with _untouched():
                made: Tensor = func(*args, **kwargs)
            if made.device.type == "cpu" and made.nbytes >= self._least_bytes:
                self._defer(made)
                return made
            return func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        involved = [tensor for tensor in tensors if _key(tensor) in self._notes]
        if not involved:
            return func(*args, **kwargs)
        target = args[0]
        if func.is_view:
            with _in_memory(self._notes[_key(target)]):
                return func(*args, **kwargs)
        is_of_whole = len(involved) == 1 and involved[0] is target and self._is_whole(target)
        if is_of_whole and func is aten._to_copy.default and _is_in_other_order(target, kwargs):  # to channels-last
            note = self._notes[_key(target)]
            with _untouched():
                made = torch.empty_like(target, memory_format=kwargs["memory_format"])
            self._defer(made).fillings.append((lambda t: self._copy(note, t), None))
            return made
        if is_of_whole and _fills(func, args, kwargs):
            is_unchanged = _watch(args[1:])

            def fill(tensor: Tensor) -> None:
                assert is_unchanged(), "a tensor has changed since it was copied"
                func(tensor, *args[1:], **kwargs)

            self._fill(target, fill, torch.Tag.nondeterministic_seeded in func.tags, func in OVERWRITES)
            return target
        if func is aten.copy_.default and _key(target) == _key(args[1]) and _is_same_view(target, args[1]):
            return target
        self.settle(involved)
        return func(*args, **kwargs)

    def settle(self, tensors: Iterable[Tensor]) -> None:
        """Gives each of `tensors` its memory and numbers, if it has none. What nobody filled is NaN."""
        for tensor in tensors:
            self._settle(tensor)

    def settle_rest(self) -> None:
        """Settles all that is left, one by one: what nobody uses is gone again at once."""
        while self._notes:
            self._settle(next(iter(self._notes.values())).tensor)

    def _defer(self, made: Tensor) -> _Note:
        note = self._notes[_key(made)] = _Note(made.detach(), made.untyped_storage().nbytes())
        made.untyped_storage().resize_(0)
        return note

    def _settle(self, tensor: Tensor) -> None:
        note = self._notes.pop(_key(tensor), None)
        if note:
            note.tensor.untyped_storage().resize_(note.num_bytes)
            self._replay(note)

    def _replay(self, note: _Note) -> None:
        """Fills the memory of `note`."""
        before = torch.get_rng_state()
        with self._alone(), torch.no_grad():
            if note.tensor.is_floating_point():
                note.tensor.fill_(torch.nan)
            for fill, state in note.fillings:
                if state is not None:
                    torch.set_rng_state(state)
                fill(note.tensor)
        torch.set_rng_state(before)

    def _copy(self, note: _Note, tensor: Tensor) -> None:
        with _in_memory(note):
            self._replay(note)
            tensor.copy_(note.tensor)

    def _fill(self, tensor: Tensor, fill: Callable[[Tensor], object], is_random: bool, overwrites: bool) -> None:
        """Notes what fills `tensor`; if it draws random numbers, they are drawn."""
        note = self._notes[_key(tensor)]
        if overwrites:
            note.fillings.clear()
        note.fillings.append((fill, torch.get_rng_state() if is_random else None))
        if is_random:
            with self._alone():
                fill(self._in_scratch(note))

    def _in_scratch(self, note: _Note) -> Tensor:
        """A tensor like that of `note`, in memory that is used again and again: what is freed may be slow to go."""
        if self._scratch.nbytes < note.num_bytes:
            self._scratch = torch.empty(note.num_bytes, dtype=torch.uint8)
        like, storage = note.tensor, self._scratch.untyped_storage()
        return torch.empty(0, dtype=like.dtype).set_(storage, 0, like.shape, like.stride())

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Meanwhile, operations are what they are."""
        was_busy, self._is_busy = self._is_busy, True
        try:
            yield
        finally:
            self._is_busy = was_busy

    def _whole_trunc_normal(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._is_busy or _key(tensor) not in self._notes or not self._is_whole(tensor) or "generator" in kwargs:
            return self._trunc_normal(tensor, *args, **kwargs)
        self._fill(tensor, lambda t: self._trunc_normal(t, *args, **kwargs), is_random=True, overwrites=True)
        return tensor

    def _is_whole(self, tensor: Tensor) -> bool:
        return _is_same_view(tensor, self._notes[_key(tensor)].tensor)


@contextmanager
def _untouched() -> Iterator[None]:
    """Meanwhile, new memory is not filled: the system gives it only when it is."""
    switch: Any = torch.utils.deterministic
    was = switch.fill_uninitialized_memory
    switch.fill_uninitialized_memory = False
    try:
        yield
    finally:
        switch.fill_uninitialized_memory = was


@contextmanager
def _in_memory(note: _Note) -> Iterator[None]:
    """Meanwhile, the tensor of `note` has memory, whatever is in it."""
    storage = note.tensor.untyped_storage()
    storage.resize_(note.num_bytes)
    try:
        yield
    finally:
        storage.resize_(0)


def _key(tensor: Tensor) -> int:
    """The same for all tensors of one memory; notes keep theirs, so that it is never given to another."""
    return int(tensor.untyped_storage()._cdata)


def _is_same_view(one: Tensor, other: Tensor) -> bool:
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.storage_offset() == other.storage_offset()
    )


def _is_in_other_order(tensor: Tensor, kwargs: Any) -> bool:
    """Whether a copy of `tensor` with those options differs by nothing but its order in memory."""
    same: dict[str, Any] = {"dtype": tensor.dtype, "device": tensor.device, "layout": tensor.layout}
    options = {name: value for name, value in kwargs.items() if value is not None and same.get(name) != value}
    return options.keys() == {"memory_format"}


def _fills(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether `func` changes its first argument in place, by numbers, copying or the one random generator."""
    others = tree_leaves((args[1:], kwargs))
    if any(isinstance(leaf, torch.Generator) for leaf in others) or not func._schema.name.endswith("_"):
        return False
    return func is aten.copy_.default or not any(isinstance(leaf, Tensor) for leaf in others)


def _watch(sources: Iterable[Any]) -> Callable[[], bool]:
    """Tells later whether those tensors are still what they are now."""
    versions = [(source, source._version) for source in sources if isinstance(source, Tensor)]
    return lambda: all(source._version == version for source, version in versions)
