"""Experts one by one and in stacks: each as a view of the other."""

from collections.abc import Mapping

from lora_tools.architectures.loading import EXPERT, PARTS, STACKS, stack_of
from lora_tools.files.header import Spec
from lora_tools.matching.views import Matrix, Move, View


def stacked(views: Mapping[str, View]) -> dict[str, View]:
    """Return the views with the experts of a layer in stacks, as transformers 5 has them.

    Experts of which one is missing, or of another shape, stay as they are.
    """
    layers: dict[str, dict[str, dict[int, View]]] = {}
    for name, view in views.items():
        match = EXPERT.fullmatch(name)
        if match and match["leaf"] in STACKS and view.is_whole and len(view.spec.shape) == 2:
            leaves = layers.setdefault(match["experts"], {})
            leaves.setdefault(match["leaf"], {})[int(match["number"])] = view
    found: dict[str, dict[tuple[int, int], View]] = {}
    for experts, leaves in layers.items():
        for leaf, numbered in leaves.items():
            stack, part = stack_of(leaf, leaves)
            members = found.setdefault(f"{experts}.{stack}", {})
            members |= {(number, part): view for number, view in numbered.items()}
    result, gone = {}, set[str]()
    for name, members in found.items():
        parts = PARTS[name.rpartition(".")[2]]
        count = len(members) // parts
        shapes = {view.spec.shape for view in members.values()}
        wanted = {(expert, part) for expert in range(count) for part in range(parts)}
        if members.keys() == wanted and len(shapes) == 1 and name not in views:
            result[name] = _stack(name, members, count, parts)
            gone |= {view.name for view in members.values()}
    return {name: view for name, view in views.items() if name not in gone} | result


def _stack(name: str, members: Mapping[tuple[int, int], View], count: int, parts: int) -> View:
    first = members[0, 0]
    rows, columns = first.spec.shape
    moves = tuple(
        Move(
            view.key,
            Matrix(rows),
            (range(rows),),
            Matrix(parts * rows, count, expert),
            (range(part * rows, (part + 1) * rows),),
        )
        for (expert, part), view in sorted(members.items())
    )
    spec = Spec(first.spec.dtype, (count, parts * rows, columns))
    return View(name, spec, first.key, moves)


def split(views: Mapping[str, View], leaves: tuple[str, ...]) -> dict[str, View]:
    """Return the views with the experts of each stack one by one, their layers called ``leaves``.

    Stacks that hold the transposes are left: their tables say how they are made.
    """
    result = {}
    for name, view in views.items():
        experts, _, leaf = name.rpartition(".")
        parts = [each for each in leaves if stack_of(each, leaves)[0] == leaf]
        shape = view.spec.shape
        if len(shape) != 3 or not experts.endswith("experts") or len(parts) != PARTS.get(leaf):
            result[name] = view
            continue
        count, height, columns = shape
        rows, odd = divmod(height, len(parts))
        if odd or not view.is_whole:
            result[name] = view
            continue
        for expert in range(count):
            for each in parts:
                part = stack_of(each, leaves)[1]
                own = range(part * rows, (part + 1) * rows)
                move = Move(
                    view.key,
                    Matrix(height, count, expert),
                    (own,),
                    Matrix(rows),
                    (range(rows),),
                )
                one = f"{experts}.{expert}.{each}.weight"
                result[one] = View(one, Spec(view.spec.dtype, (rows, columns)), view.key, (move,))
    return result
