"""The pictures of a data set divided: some to calibrate on, others to compare on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mscope.calib.dataset import Dataset, Example, LabelledBatch, open_dataset, prepared_batches
from mscope.core.errors import InputError
from mscope.core.manifest import Manifest
from mscope.runtime.preprocess import Preprocessor

# Prepared pictures up to this size are kept between the passes: 256 of 224 x 224 take 147 MiB.
_KEPT_BYTES = 768 << 20
# Fewer than this left over say little about a point of accuracy: then the gate takes all pictures.
_FEWEST_HELD_OUT = 100


class Subset(Dataset):
    """Some pictures of a data set, in the order of its indices."""

    def __init__(self, whole: Dataset, chosen: Sequence[int]) -> None:
        self.name = whole.name
        self.classes = whole.classes
        self.notes = whole.notes
        self._whole = whole
        self._chosen = tuple(chosen)

    def __len__(self) -> int:
        return len(self._chosen)

    def example(self, index: int) -> Example:
        return self._whole.example(self._chosen[index])

    @property
    def fingerprint(self) -> str:
        """Of the whole data set."""
        return self._whole.fingerprint


@dataclass
class Pictures:
    """Pictures for several passes: prepared at the first and kept, or prepared anew where they would fill the memory.

    Attributes:
        data: where they come from.
        preprocess: the bundle's.
        batch: largest batch.
        problems: why a picture could not be read, by its name.
    """

    data: Dataset
    preprocess: Preprocessor
    batch: int = 16
    problems: dict[str, str] = field(default_factory=dict)
    _kept: list[LabelledBatch] | None = field(default=None, repr=False)

    def __call__(self) -> Iterator[LabelledBatch]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[LabelledBatch] | None = []
        size = 0
        for batch in prepared_batches(self.data, self.preprocess, self.batch, on_problem=self._note):
            size += batch.tensor.nbytes
            if kept is not None and size <= _KEPT_BYTES:
                kept.append(batch)
            else:
                kept = None
            yield batch
        self._kept = kept

    def _note(self, index: int, error: InputError) -> None:
        self.problems[self.data.example(index).source] = str(error)


def split_data(dataset: Dataset, calibration: int) -> tuple[Dataset, Dataset, bool]:
    """Divides a data set in two.

    Args:
        dataset: the pictures.
        calibration: how many to calibrate on, at least one; spread evenly over the data set's order.

    Returns:
        The pictures to calibrate on; those to compare on; and whether these are others. Where too few are left over,
        the comparison takes all pictures.
    """
    if calibration < 1:
        raise InputError(f"--calib-images is 1 or more, got {calibration}")
    count = min(calibration, len(dataset))
    chosen = {turn * len(dataset) // count for turn in range(count)}
    others = [index for index in range(len(dataset)) if index not in chosen]
    seen = Subset(dataset, sorted(chosen))
    if len(others) < _FEWEST_HELD_OUT:
        return seen, dataset, False
    return seen, Subset(dataset, others), True


def open_calibration_data(spec: str, manifest: Manifest, calibration: int, compared: int) -> Dataset:
    """The data set named by --calib-data, as many pictures as both uses need.

    `digits` is its validation split here: pictures of the test split stay unseen until the evaluation.
    """
    return open_dataset("digits:validation" if spec == "digits" else spec, manifest, limit=calibration + compared)
