"""What the paper (arXiv 2512.00647, ImageNet-1K) says beside our rows: only figures that are to hand.

To hand are the costs of Table 5 and the operating points of section 5.1. Of Tables 4, 6 and 7, of Table 5's accuracies
and of the comparisons of section 5.4 it is the choice that the paper made, not its figures.
"""

from __future__ import annotations

from dataclasses import dataclass

UNKNOWN = "not to hand"
CHOICE = "its choice; figure not to hand"

# GMACs of the fine stage of MambaScope-S at each alpha, and of plain ViM-S (Table 5).
FINE_GMACS = {0.5: 3.2, 0.6: 3.5, 0.7: 3.9, 0.8: 4.4, 0.9: 4.7}
PLAIN_GMACS = 5.1

# Options that the paper uses, by the label of our row.
CHOICES = {
    "max": CHOICE,
    "0.99": CHOICE,
    "4, 6 (second half, every second)": CHOICE,
    "mlp": CHOICE,
    "class-first": CHOICE,
    "class-first, a region's four patches together": "what eqs. 15 and 16 list; figure not to hand",
}


@dataclass(frozen=True)
class Point:
    """An operating point: ImageNet top-1 in %, mean GMACs; of a size with its plain ViM."""

    name: str
    top1: float
    gmacs: float
    plain_top1: float
    plain_gmacs: float

    @property
    def difference(self) -> float:
        """Points of accuracy more than plain ViM."""
        return self.top1 - self.plain_top1

    @property
    def of_plain(self) -> float:
        """Mean cost as a share of plain ViM's."""
        return self.gmacs / self.plain_gmacs


POINTS = (
    Point("S, coarse stage alone", 75.6, 1.4, 80.3, PLAIN_GMACS),
    Point("S, eta 0.5", 79.8, 2.5, 80.3, PLAIN_GMACS),
    Point("S, eta 0.55", 80.3, 2.7, 80.3, PLAIN_GMACS),
    Point("S, eta 0.65", 80.7, 3.1, 80.3, PLAIN_GMACS),
    Point("S, default", 81.2, 4.3, 80.3, PLAIN_GMACS),
    Point("Ti, default", 76.4, 1.4, 76.1, 1.5),
    Point("B, eta 0.7", 82.8, 11.8, 81.9, 18.9),
)


def beside(option: str) -> str:
    """The cell of the paper's column for an option of Table 4, 6, 7 or section 5.4."""
    return CHOICES.get(option, UNKNOWN)
