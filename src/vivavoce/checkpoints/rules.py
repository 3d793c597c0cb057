"""Foreign weight layouts as data: a table of rows says which of their tensors becomes which of ours, and how.

A :class:`Row` pairs key templates with one :class:`Operation` from a closed set, each with its inverse, so the same
table reads a published checkpoint and writes one. Reading is total: every foreign key is consumed once or dropped for
a stated reason, every parameter of ours is filled once with the right shape, or one error lists all that is wrong.

Templates: ``{i}``, ``{j}``, ``{k}``, ``{n}`` stand for an integer, also in the forms ``{2*i}``, ``{i+1}`` and
``{2*i+1}``; any other name, such as ``{w}``, stands for one component between dots or slashes. A name means the same on
both sides of a row. In a dropped key ``*`` stands for anything. Rows are tried in order and the first that fits a key
takes it, so special rows stand before general ones; two rows may fill the same key of ours from different spellings as
long as a file holds only one of them.

    Row("dec.ups.{i}.weight", "decoder.ups.{i}.weight", WeightNorm())
    Row(("attn.q.{w}", "attn.k.{w}", "attn.v.{w}"), "attention.qkv.{w}", Join(0))
    Row("enc_q.*", None, Drop("training only"))
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vivavoce.errors import CheckpointError

Shape = tuple[int, ...]
Binding = tuple[tuple[str, str], ...]

# ---------------------------------------------------------------------------------------------------- operations


@dataclass(frozen=True)
class Operation:
    """How the tensors of one row change; ``load`` goes from theirs to ours, ``save`` is its inverse."""

    def spellings(self, theirs: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        """The sets of foreign key templates that this row accepts, the one written on export first."""
        return (theirs,)

    def may_lack(self, part: int) -> bool:
        """Whether the foreign tensor at position ``part`` may be absent while its siblings are there."""
        return False

    def load(self, theirs: Sequence[Tensor | None], shapes: Sequence[Shape]) -> list[Tensor]:
        """Foreign tensors to ours; ``shapes`` are the shapes ours must have."""
        return [self.forward(_present(tensor)) for tensor in theirs]

    def save(self, ours: Sequence[Tensor]) -> list[Tensor | None]:
        """Our tensors to theirs; None leaves the foreign key out."""
        return [self.backward(tensor) for tensor in ours]

    def forward(self, tensor: Tensor) -> Tensor:
        """One foreign tensor to ours."""
        return tensor

    def backward(self, tensor: Tensor) -> Tensor:
        """One tensor of ours to theirs."""
        return tensor


@dataclass(frozen=True)
class Same(Operation):
    """The tensor as it is."""


@dataclass(frozen=True)
class Transpose(Operation):
    """Swap two dimensions."""

    dim0: int = 0
    dim1: int = 1

    def forward(self, tensor: Tensor) -> Tensor:
        return tensor.transpose(self.dim0, self.dim1).contiguous()

    backward = forward


@dataclass(frozen=True)
class Squeeze(Operation):
    """Remove a dimension of size one, such as the kernel axis of a pointwise convolution."""

    dim: int = -1

    def forward(self, tensor: Tensor) -> Tensor:
        if tensor.shape[self.dim] != 1:
            raise ValueError(f"dimension {self.dim} is not one")
        return tensor.squeeze(self.dim)

    def backward(self, tensor: Tensor) -> Tensor:
        return tensor.unsqueeze(self.dim)


@dataclass(frozen=True)
class Reshape(Operation):
    """The same numbers in another shape: ours comes from the model, ``theirs`` (one entry may be -1) serves export."""

    theirs: Shape

    def load(self, theirs: Sequence[Tensor | None], shapes: Sequence[Shape]) -> list[Tensor]:
        return [_present(tensor).reshape(shape) for tensor, shape in zip(theirs, shapes, strict=True)]

    def backward(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(self.theirs)


@dataclass(frozen=True)
class Scale(Operation):
    """Ours is theirs times ``factor``."""

    factor: float

    def forward(self, tensor: Tensor) -> Tensor:
        return tensor * self.factor

    def backward(self, tensor: Tensor) -> Tensor:
        return tensor / self.factor


@dataclass(frozen=True)
class NegativeLog(Operation):
    """Ours is minus the logarithm of theirs, where an exporter stored the exponential of a log-scale."""

    def forward(self, tensor: Tensor) -> Tensor:
        return -tensor.log()

    def backward(self, tensor: Tensor) -> Tensor:
        return tensor.neg().exp()


@dataclass(frozen=True)
class RopeHalves(Operation):
    """Rows of a query or key projection from interleaved rotary pairs (theirs) to two halves per head (ours).

    Acts on dim 0 = ``n_heads`` * head width, so it fits weights and biases; keys have their own number of heads.
    """

    n_heads: int

    def forward(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(self.n_heads, -1, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)

    def backward(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(self.n_heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


@dataclass(frozen=True)
class Split(Operation):
    """One tensor of theirs becomes several of ours along ``dim``, with the sizes that our model has."""

    dim: int = 0

    def load(self, theirs: Sequence[Tensor | None], shapes: Sequence[Shape]) -> list[Tensor]:
        sizes = [shape[self.dim] for shape in shapes]
        # A copy each: pieces that share one storage could not be written to a file apart.
        return [piece.clone() for piece in _present(theirs[0]).split(sizes, self.dim)]

    def save(self, ours: Sequence[Tensor]) -> list[Tensor | None]:
        return [torch.cat(list(ours), self.dim)]


@dataclass(frozen=True)
class Join(Operation):
    """Several tensors of theirs become one of ours along ``dim``.

    Export cuts by ``sizes`` where the parts differ (shares of the whole, so ``(3, 1, 1)`` will do), else equally.
    ``zero_if_missing``: parts (all, or these positions) that a file may leave out and that then hold zeros; export
    leaves them out again when they are all zero. Give such biases a row of their own, apart from the weights.
    """

    dim: int = 0
    sizes: tuple[int, ...] | None = None
    zero_if_missing: bool | tuple[int, ...] = False
    parts: int = 0

    def may_lack(self, part: int) -> bool:
        if isinstance(self.zero_if_missing, bool):
            return self.zero_if_missing
        return part in self.zero_if_missing

    def load(self, theirs: Sequence[Tensor | None], shapes: Sequence[Shape]) -> list[Tensor]:
        present = [tensor for tensor in theirs if tensor is not None]
        n_absent = len(theirs) - len(present)
        if n_absent:
            rest = shapes[0][self.dim] - sum(tensor.shape[self.dim] for tensor in present)
            if rest < 0 or rest % n_absent:
                raise ValueError("the parts do not add up")
            shape = list(present[0].shape)
            shape[self.dim] = rest // n_absent
            theirs = [present[0].new_zeros(shape) if tensor is None else tensor for tensor in theirs]
        return [torch.cat([_present(tensor) for tensor in theirs], self.dim)]

    def save(self, ours: Sequence[Tensor]) -> list[Tensor | None]:
        whole = ours[0].shape[self.dim]
        shares = self.sizes or (1,) * self.parts
        if whole % sum(shares):
            raise ValueError(f"{whole} cannot be cut into shares of {shares}")
        unit = whole // sum(shares)
        pieces = [piece.clone() for piece in ours[0].split([share * unit for share in shares], self.dim)]
        keep = [not self.may_lack(part) or bool(piece.any()) for part, piece in enumerate(pieces)]
        return [piece if kept or not any(keep) else None for piece, kept in zip(pieces, keep, strict=True)]


@dataclass(frozen=True)
class WeightNorm(Operation):
    """A weight-normed parameter, folded: ours = g * v / |v|, the norm taken over all dimensions but ``dim``.

    The row names the plain key (``X.weight``); read are ``X.weight_g`` + ``X.weight_v``, the newer
    ``X.parametrizations.weight.original0`` + ``original1``, or an already folded ``X.weight``. ``writes`` chooses the
    spelling of an export: "g_v", "parametrizations" or "folded". Transposed convolutions are normed over dim 0 too.
    """

    dim: int = 0
    writes: str = "g_v"

    def spellings(self, theirs: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        path = theirs[0]
        stem, dot, name = path.rpartition(".")
        found = {
            "g_v": (f"{path}_g", f"{path}_v"),
            "parametrizations": tuple(f"{stem}{dot}parametrizations.{name}.original{n}" for n in (0, 1)),
            "folded": (path,),
        }
        return (found.pop(self.writes), *found.values())

    def load(self, theirs: Sequence[Tensor | None], shapes: Sequence[Shape]) -> list[Tensor]:
        if len(theirs) == 1:
            return [_present(theirs[0])]
        gain, direction = _present(theirs[0]).float(), _present(theirs[1]).float()
        if gain.numel() != direction.shape[self.dim]:
            raise ValueError("gain and direction do not fit")
        norm = self._norm(direction)
        return [gain.reshape(norm.shape) * direction / norm]

    def save(self, ours: Sequence[Tensor]) -> list[Tensor | None]:
        return [ours[0]] if self.writes == "folded" else [self._norm(ours[0]), ours[0].clone()]

    def _norm(self, weight: Tensor) -> Tensor:
        over = [dim for dim in range(weight.ndim) if dim != self.dim % weight.ndim]
        return torch.linalg.vector_norm(weight, dim=over, keepdim=True)


@dataclass(frozen=True)
class Tie(Operation):
    """One tensor of theirs fills several of ours, which must be equal when written back."""

    def load(self, theirs: Sequence[Tensor | None], shapes: Sequence[Shape]) -> list[Tensor]:
        return [_present(theirs[0]).clone() for _ in shapes]

    def save(self, ours: Sequence[Tensor]) -> list[Tensor | None]:
        if any(not torch.equal(ours[0], other) for other in ours[1:]):
            raise ValueError("tied parameters differ")
        return [ours[0]]


@dataclass(frozen=True)
class Fill(Operation):
    """A constant for a parameter that their file does not hold; the row's foreign side is ``()``."""

    value: float = 0.0

    def load(self, theirs: Sequence[Tensor | None], shapes: Sequence[Shape]) -> list[Tensor]:
        return [torch.full(shape, self.value) for shape in shapes]

    def save(self, ours: Sequence[Tensor]) -> list[Tensor | None]:
        return []


@dataclass(frozen=True)
class Drop(Operation):
    """A foreign key that our model has no use for, with the reason; our side is None."""

    reason: str


@dataclass(frozen=True)
class Inverse(Operation):
    """A one-to-one operation the other way round: its export reads and its import writes."""

    operation: Operation

    def forward(self, tensor: Tensor) -> Tensor:
        return self.operation.backward(tensor)

    def backward(self, tensor: Tensor) -> Tensor:
        return self.operation.forward(tensor)


@dataclass(frozen=True)
class Each(Operation):
    """One operation per part, as in ``Chain(Each(RopeHalves(9), RopeHalves(3), Same()), Join(0))``."""

    operations: tuple[Operation, ...]

    def __init__(self, *operations: Operation) -> None:
        object.__setattr__(self, "operations", operations)

    def load(self, theirs: Sequence[Tensor | None], shapes: Sequence[Shape]) -> list[Tensor]:
        pairs = zip(self.operations, theirs, strict=True)
        return [operation.forward(_present(tensor)) for operation, tensor in pairs]

    def save(self, ours: Sequence[Tensor]) -> list[Tensor | None]:
        return [operation.backward(tensor) for operation, tensor in zip(self.operations, ours, strict=True)]


@dataclass(frozen=True)
class Chain(Operation):
    """Operations one after another, in import order; only the last may look at the shapes of our model."""

    operations: tuple[Operation, ...]

    def __init__(self, *operations: Operation) -> None:
        object.__setattr__(self, "operations", operations)

    def spellings(self, theirs: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        return self.operations[0].spellings(theirs)

    def may_lack(self, part: int) -> bool:
        return self.operations[0].may_lack(part)

    def load(self, theirs: Sequence[Tensor | None], shapes: Sequence[Shape]) -> list[Tensor]:
        tensors: Sequence[Tensor | None] = theirs
        for operation in self.operations:
            tensors = operation.load(tensors, shapes)
        return [_present(tensor) for tensor in tensors]

    def save(self, ours: Sequence[Tensor]) -> list[Tensor | None]:
        tensors: Sequence[Tensor | None] = ours
        for operation in reversed(self.operations):
            tensors = operation.save([_present(tensor) for tensor in tensors])
        return list(tensors)


def _present(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise ValueError("a part is missing")
    return tensor


# ---------------------------------------------------------------------------------------------------- templates

_FIELD = re.compile(r"\{(?:(\d+)\*)?(\w+)(?:\+(\d+))?\}")
_INTEGERS = frozenset("ijkn")


@functools.cache
def _compiled(template: str) -> tuple[re.Pattern[str], tuple[tuple[str, int, int], ...]]:
    """A template's pattern and, per group, (name, factor, offset)."""
    pattern, groups, end = "", [], 0
    for found in _FIELD.finditer(template):
        pattern += re.escape(template[end : found.start()]).replace(r"\*", ".*")
        name = found[2]
        groups.append((name, int(found[1] or 1), int(found[3] or 0)))
        pattern += r"(\d{1,9})" if name in _INTEGERS else r"([^./]+)"
        end = found.end()
    return re.compile(pattern + re.escape(template[end:]).replace(r"\*", ".*")), tuple(groups)


def _match(template: str, key: str) -> Binding | None:
    """The values of a template's names in ``key``, or None when it does not fit."""
    pattern, groups = _compiled(template)
    found = pattern.fullmatch(key)
    if found is None:
        return None
    values: dict[str, str] = {}
    for (name, factor, offset), text in zip(groups, found.groups(), strict=True):
        if name in _INTEGERS:
            index, rest = divmod(int(text) - offset, factor)
            if rest or index < 0:
                return None
            text = str(index)
        if values.setdefault(name, text) != text:
            return None
    return tuple(sorted(values.items()))


def _expand(template: str, binding: Binding) -> str:
    values = dict(binding)

    def value(found: re.Match[str]) -> str:
        text = values[found[2]]
        return str(int(text) * int(found[1] or 1) + int(found[3] or 0)) if found[2] in _INTEGERS else text

    return _FIELD.sub(value, template)


def _names(templates: Iterable[str]) -> list[frozenset[str]]:
    return [frozenset(name for name, _, _ in _compiled(template)[1]) for template in templates]


# ---------------------------------------------------------------------------------------------------- rows, layouts


@dataclass(frozen=True)
class Row:
    """One correspondence. ``theirs`` and ``ours`` are templates or tuples of them; ``ours`` None needs a Drop.

    ``optional``: the row may match nothing at all (a part that only some variants of the model have).
    """

    theirs: str | tuple[str, ...]
    ours: str | tuple[str, ...] | None
    operation: Operation = field(default_factory=Same)
    optional: bool = False

    def __post_init__(self) -> None:
        sides = _names((*self.foreign, *self.own))
        if (self.ours is None) != isinstance(self.operation, Drop):
            raise ValueError(f"row {self.theirs!r}: a dropped key has no key of ours, and only a dropped one")
        if self.ours is not None and any(names != sides[0] for names in sides):
            raise ValueError(f"row {self.theirs!r}: both sides must use the same names in braces")

    @property
    def foreign(self) -> tuple[str, ...]:
        """Their templates, always as a tuple."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs

    @property
    def own(self) -> tuple[str, ...]:
        """Our templates, always as a tuple (empty for a dropped key)."""
        if self.ours is None:
            return ()
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    def save(self, ours: Sequence[Tensor]) -> list[Tensor | None]:
        """Our tensors in their form, one entry per template of the written spelling."""
        return _with_parts(self.operation, len(self.foreign)).save(ours)


def _with_parts(operation: Operation, count: int) -> Operation:
    """Tell every Join how many parts its row has, which only the row knows."""
    if isinstance(operation, Join):
        return Join(operation.dim, operation.sizes, operation.zero_if_missing, count)
    if isinstance(operation, Chain):
        return Chain(*(_with_parts(inner, count) for inner in operation.operations))
    return operation


@dataclass(frozen=True)
class Layout:
    """One published layout: ``signature`` templates must all be present in a file and ``absent`` ones must not."""

    name: str
    signature: tuple[str, ...]
    rows: tuple[Row, ...]
    absent: tuple[str, ...] = ()


def detect(keys: Iterable[str], layouts: Iterable[Layout]) -> Layout:
    """The layout whose signature the keys carry (the longest signature wins); CheckpointError names the known ones."""
    known, names = list(layouts), list(keys)

    def has(template: str) -> bool:
        return any(_match(template, key) is not None for key in names)

    fitting = [
        layout
        for layout in known
        if all(has(template) for template in layout.signature) and not any(has(template) for template in layout.absent)
    ]
    if not fitting:
        listing = ", ".join(layout.name for layout in known)
        sample = ", ".join(names[:3]) or "none"
        raise CheckpointError(
            f"no known layout fits this checkpoint (its first keys: {sample}); give a file in one of: {listing}"
        )
    return max(fitting, key=lambda layout: len(layout.signature))


@dataclass
class _Faults:
    """What does not fit, gathered so that one sentence can say it all."""

    missing: list[str] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)

    def raise_if_any(self, layout: Layout) -> None:
        named = [("missing", self.missing), ("surplus", self.surplus), ("misshapen", self.misshapen)]
        total = sum(len(keys) for _, keys in named)
        if not total:
            return
        room, parts = 20, []
        for kind, keys in named:
            if keys and room:
                parts.append(f"{kind}: {', '.join(keys[:room])}")
                room = max(0, room - len(keys))
        more = f" and {total - 20} more" if total > 20 else ""
        raise CheckpointError(
            f"the weights do not fit the layout {layout.name!r}, {'; '.join(parts)}{more}; "
            "check that the weights and the configuration belong together"
        )


def _claims(rows: Sequence[Row], keys: Iterable[str]) -> tuple[dict[tuple[int, int, Binding], None], list[str]]:
    """Which (row, spelling, binding) the foreign keys call for, in order, and the keys that no row knows."""
    claims: dict[tuple[int, int, Binding], None] = {}
    templates = [
        (number, spelling, template)
        for number, row in enumerate(rows)
        for spelling, group in enumerate(row.operation.spellings(row.foreign) if row.foreign else ())
        for template in group
    ]
    unknown = []
    for key in keys:
        for number, spelling, template in templates:
            binding = _match(template, key)
            if binding is not None:
                claims[number, spelling, binding] = None
                break
        else:
            unknown.append(key)
    return claims, unknown


def import_weights(layout: Layout, source: Mapping[str, Tensor], shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """Foreign tensors as a state dict of ours.

    ``source`` may be lazy: each tensor is asked for once, dropped ones never. ``shapes`` are the shapes of our state
    dict. Floating types are kept (folding weight norm gives float32). One CheckpointError lists every missing, surplus
    and misshapen key.
    """
    claims, unknown = _claims(layout.rows, source)
    faults, ours = _Faults(surplus=list(unknown)), dict[str, Tensor]()
    for number, spelling, binding in claims:
        row = layout.rows[number]
        if row.ours is not None:
            theirs = [_expand(template, binding) for template in row.operation.spellings(row.foreign)[spelling]]
            _fill(row, theirs, [_expand(template, binding) for template in row.own], source, shapes, ours, faults)
    for row in layout.rows:
        if not row.foreign:
            for binding in dict.fromkeys(_match(row.own[0], key) for key in shapes):
                own = [] if binding is None else [_expand(template, binding) for template in row.own]
                if own and not any(key in ours for key in own):
                    _fill(row, [], own, source, shapes, ours, faults)
    touched = {number for number, _, _ in claims}
    wanted = [key for key in shapes if key not in ours]
    reported = {line.split(" ")[0] for line in faults.misshapen}
    faults.missing += [_origin(layout, key) for key in wanted if key not in reported]
    for number, row in enumerate(layout.rows):
        needed = row.foreign and row.own and not row.optional and number not in touched
        if needed and not any(_match(template, key) is not None for template in row.own for key in shapes):
            faults.missing.append(row.foreign[0])
    faults.missing = list(dict.fromkeys(faults.missing))
    faults.raise_if_any(layout)
    return ours


def _fill(
    row: Row,
    theirs: list[str],
    own: list[str],
    source: Mapping[str, Tensor],
    shapes: Mapping[str, Shape],
    ours: dict[str, Tensor],
    faults: _Faults,
) -> None:
    """Carry out one row for one set of keys, or note what keeps it from working."""
    absent = [key for part, key in enumerate(theirs) if key not in source and not row.operation.may_lack(part)]
    if any(key not in shapes or key in ours for key in own):
        faults.surplus += [key for key in theirs if key in source]
        return
    if absent:
        faults.missing += absent
        return
    wanted = [tuple(shapes[key]) for key in own]
    try:
        made = row.operation.load([source.get(key) for key in theirs], wanted)
    except (RuntimeError, ValueError, IndexError):
        faults.misshapen += [f"{key} (from {', '.join(theirs)}, wanted {list(shapes[key])})" for key in own]
        return
    for key, tensor, shape in zip(own, made, wanted, strict=True):
        if tuple(tensor.shape) != shape:
            faults.misshapen.append(f"{key} {list(tensor.shape)} instead of {list(shape)}")
        else:
            ours[key] = tensor


def _origin(layout: Layout, key: str) -> str:
    """The foreign key that should have filled ``key`` of ours, for an error message."""
    for row in layout.rows:
        for template in row.own:
            binding = _match(template, key)
            if binding is not None and row.foreign:
                return _expand(row.foreign[row.own.index(template) if len(row.foreign) == len(row.own) else 0], binding)
    return f"{key} (ours)"


def export_weights(layout: Layout, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict in the published layout: the inverse of :func:`import_weights`, dropped keys left out."""
    theirs: dict[str, Tensor] = {}
    faults, done = _Faults(), set[tuple[int, Binding]]()
    for key in ours:
        claim = next(
            (
                (number, binding)
                for number, row in enumerate(layout.rows)
                for template in row.own
                if (binding := _match(template, key)) is not None
            ),
            None,
        )
        if claim is None:
            faults.surplus.append(key)
        elif claim not in done:
            done.add(claim)
            _write(layout.rows[claim[0]], claim[1], ours, theirs, faults)
    faults.raise_if_any(layout)
    return theirs


def _write(row: Row, binding: Binding, ours: Mapping[str, Tensor], theirs: dict[str, Tensor], faults: _Faults) -> None:
    """Write one row of ours for one binding into ``theirs``."""
    own = [_expand(template, binding) for template in row.own]
    absent = [key for key in own if key not in ours]
    if absent:
        faults.missing += absent
        return
    if not row.foreign:
        return
    try:
        made = row.save([ours[key] for key in own])
    except (RuntimeError, ValueError, IndexError):
        faults.misshapen += own
        return
    for template, tensor in zip(row.operation.spellings(row.foreign)[0], made, strict=True):
        if tensor is not None:
            theirs[_expand(template, binding)] = tensor
