"""Class names: ImageNet-1K's come with the package, others from a file."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from mscope.core.errors import InputError
from mscope.core.files import read_within
from mscope.core.text import control_character_in

_IMAGENET = Path(__file__).parent / "data" / "imagenet_labels.txt"
_MAX_BYTES = 64 << 20


@cache
def imagenet_labels() -> tuple[str, ...]:
    """The 1,000 class names of ImageNet-1K in their usual order (0 tench, 285 Egyptian cat, 999 toilet tissue).

    The first synonym of each class. Names that two classes share are told apart by another synonym: crane bird (134)
    and crane (517), maillot (638) and tank suit (639), and Cardigan Welsh corgi (264) beside cardigan (474).
    """
    return labels_from_file(_IMAGENET, 1000)


def labels_from_file(path: str | Path, classes: int) -> tuple[str, ...]:
    """Class names from a UTF-8 text file, one a line, the first line being class 0.

    Args:
        path: the file; blank lines at its end are ignored.
        classes: how many names there must be.

    Raises:
        InputError: the file cannot be read, is no UTF-8 text, has an empty line, a control character or another
            number of names.
    """
    path = Path(path)
    try:
        content = read_within(path, _MAX_BYTES)
        if content is None:
            raise InputError(f"{path}: larger than {_MAX_BYTES >> 20} MiB: not a list of class names")
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise InputError(f"{path}: cannot read the labels: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text: labels are one name a line") from None
    names = tuple(line.strip() for line in text.rstrip().split("\n")) if text.strip() else ()
    if len(names) != classes:
        raise InputError(f"{path}: {len(names)} labels, the model has {classes} classes: give one name a line")
    if "" in names:
        raise InputError(f"{path}: line {names.index('') + 1} is empty: every class needs a name")
    if where := control_character_in(list(names)):
        raise InputError(f"{path}: line {int(where) + 1} has a control character in it: names are plain text")
    return names
