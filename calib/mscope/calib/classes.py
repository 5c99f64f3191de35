"""From the names that a data set gives its classes to the indices of the network's outputs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mscope.core.errors import InputError
from mscope.runtime.labels import imagenet_labels

_WORDNET_ID = re.compile(r"n\d{8}")
_NUMBER = re.compile(r"0|[1-9]\d{0,6}")


@dataclass(frozen=True)
class ClassMap:
    """Indices of the network's outputs by the data set's class names. `rule` says how they were found, for people."""

    indices: Mapping[str, int]
    rule: str


def map_classes(names: Sequence[str], classes: int, labels: Sequence[str] | None, where: str) -> ClassMap:
    """Which output of the network each class name stands for.

    In this order: the bundle's labels, by exact name, of which there may be fewer than outputs; as many names as
    outputs, in sorted order, as is usual for image folders (for ImageNet's WordNet ids this is the usual order of its
    1,000 classes). Nothing is guessed beyond that.

    Args:
        names: the distinct class names, in any order.
        classes: outputs of the network.
        labels: their names, or None where the bundle has none.
        where: the data set, as errors name it.

    Raises:
        InputError: the names fit neither way, or fit in more than one.
    """
    ordered = sorted(set(names))
    known = {label: index for index, label in enumerate(labels or ())}
    for name in ordered:
        if (labels or ()).count(name) > 1:
            raise InputError(
                f"{where}: the bundle has several classes named '{name}': give a list of 'path,index' lines"
            )
    strangers = [name for name in ordered if name not in known]
    if known and not strangers:
        return ClassMap({name: known[name] for name in ordered}, "by name")
    if known and len(strangers) < len(ordered):
        raise InputError(
            f"{where}: '{strangers[0]}' ({len(strangers)} of {len(ordered)} names) is not among the bundle's labels, "
            "though others are: rename or remove these, or give a list of 'path,index' lines"
        )
    if len(ordered) != classes:
        raise InputError(_misfit(ordered, classes, labels, where))
    if all(_NUMBER.fullmatch(name) for name in ordered) and ordered != sorted(ordered, key=int):
        place, by_value = next((i, name) for i, name in enumerate(sorted(ordered, key=int)) if name != ordered[i])
        raise InputError(
            f"{where}: class names that are numbers have two orders (class {place} is '{ordered[place]}' as text, "
            f"'{by_value}' by value): write them with leading zeros, or give a list of 'path,index' lines"
        )
    return ClassMap(
        {name: index for index, name in enumerate(ordered)},
        f"by sorted order: '{ordered[0]}' is class 0, '{ordered[-1]}' class {classes - 1}",
    )


def _misfit(ordered: list[str], classes: int, labels: Sequence[str] | None, where: str) -> str:
    line = f"{where}: {len(ordered)} classes ('{ordered[0]}', ...), the network has {classes} outputs"
    if all(_WORDNET_ID.fullmatch(name) for name in ordered) and (not labels or tuple(labels) == imagenet_labels()):
        return (
            f"{line}: WordNet ids are taken when all {classes} are there; for a subset name the folders by the "
            "bundle's labels, or give a list of 'path,index' lines"
        )
    if labels:
        return f"{line} and none of these names is among its labels ('{labels[0]}', ...): is this the right bundle?"
    return f"{line} and the bundle has no labels: is this the right bundle?"


def map_indices(names: Sequence[str], classes: int, labels: Sequence[str] | None, where: str) -> ClassMap:
    """As `map_classes`, for a list file, whose second column may hold indices as well as names.

    Raises:
        InputError: an index out of range, or names that do not fit.
    """
    if all(_NUMBER.fullmatch(name) for name in names):
        contradiction = [name for name in set(names) if name in (labels or ()) and (labels or ())[int(name)] != name]
        if contradiction:
            raise InputError(
                f"{where}: '{contradiction[0]}' is a label of the bundle and also the index of another class: "
                "rename the labels so that the two agree"
            )
        largest = max(names, key=int)
        if int(largest) >= classes:
            raise InputError(f"{where}: index {largest}, the network has outputs 0 to {classes - 1}")
        return ClassMap({name: int(name) for name in set(names)}, "by index")
    return map_classes(names, classes, labels, where)
