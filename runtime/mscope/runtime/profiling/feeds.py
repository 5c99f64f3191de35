"""What the fine graph is fed when every image is refined."""

from __future__ import annotations

from collections.abc import Mapping

from mscope.core.cascade import select_regions
from mscope.core.geometry import coarse_grid, regions_refined
from mscope.core.manifest import Manifest
from mscope.runtime.backends.base import Array
from mscope.runtime.result import Floats


def fine_feeds(manifest: Manifest, image: Floats, coarse: Mapping[str, Array]) -> dict[str, Array]:
    """Inputs of the fine graph for `image` (B, C, H, W) float32, given the coarse graph's outputs for it."""
    count = regions_refined(manifest.config.alpha, coarse_grid(manifest.config).count)
    selected, remaining = select_regions(coarse["importance"], count)
    return {
        "image": image,
        "features": coarse["features"],
        "embeddings": coarse["embeddings"],
        "selected": selected,
        "remaining": remaining,
    }
