"""Smoothing of outlier channels: activations divided, weights multiplied, the network unchanged (SmoothQuant, eq. 4).

The factors are powers of two and fold into the norm before the product, so that the smoothed fp32 graph computes the
same bits as the one it came from and costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from mscope.calib.sites import Site, find_sites, input_channel_max
from mscope.core.errors import InputError

Exponents = npt.NDArray[np.int64]
# A norm's weight or a matrix scaled further than this would leave the comfortable range of float32.
_LARGEST = 12


def smoothing_exponents(activation_max: npt.ArrayLike, weight_max: npt.ArrayLike, strength: float) -> Exponents:
    """log2 of the factor that each channel of an activation is divided by, rounded to an integer.

    Args:
        activation_max: (C,) largest magnitude of each channel, over the calibration data.
        weight_max: (C,) largest magnitude of the weights that read the channel.
        strength: alpha of SmoothQuant, 0 to 1: raised, more of the difficulty moves from activations to weights.

    Returns:
        (C,) int64. A channel that is always zero, or that no weight reads, has 0: it stays as it is.
    """
    if not 0.0 <= strength <= 1.0:
        raise InputError(f"the strength of smoothing is between 0 and 1, got {strength}")
    x, w = np.asarray(activation_max, np.float64), np.asarray(weight_max, np.float64)
    usable = (x > 0) & (w > 0)
    safe_x, safe_w = np.where(usable, x, 1.0), np.where(usable, w, 1.0)
    raw = strength * np.log2(safe_x) - (1 - strength) * np.log2(safe_w)
    # Only the differences between channels matter: a common factor cancels in the scales.
    centred = np.where(usable, raw - (raw[usable].mean() if usable.any() else 0.0), 0.0)
    exponents: Exponents = np.clip(np.rint(centred), -_LARGEST, _LARGEST).astype(np.int64)
    return exponents


def exponents_for(
    model: onnx.ModelProto, channel_max: Mapping[str, npt.NDArray[np.float32]], strength: float
) -> dict[str, Exponents]:
    """The exponents of every activation that a norm makes for one product alone, by the activation's name.

    `channel_max` has the observed magnitudes of each such activation.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    return {
        site.activation: smoothing_exponents(
            channel_max[site.activation],
            input_channel_max(numpy_helper.to_array(weights[site.weight]), site.output_axis),
            strength,
        )
        for site in find_sites(model)
        if site.norm is not None
    }


def smoothed(model: onnx.ModelProto, exponents: Mapping[str, Exponents]) -> onnx.ModelProto:
    """A copy of `model` with the factors 2^exponents folded in; the original is left alone.

    Raises:
        InputError: exponents for a tensor that cannot be smoothed, or of another length than it has channels.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    initializers = {tensor.name: tensor for tensor in result.graph.initializer}
    sites = {site.activation: site for site in find_sites(result) if site.norm is not None}
    for name, powers in exponents.items():
        if name not in sites:
            raise InputError(f"smoothing: {name} is no norm's output in this graph: calibrate this bundle itself")
        _fold(initializers, sites[name], powers)
    return result


def _fold(initializers: dict[str, onnx.TensorProto], site: Site, powers: Exponents) -> None:
    assert site.norm is not None
    factors = np.ldexp(np.float32(1), powers.astype(np.int32)).astype(np.float32)
    for name in filter(None, (site.norm.weight, site.norm.bias)):
        old = numpy_helper.to_array(initializers[name])
        if old.shape != factors.shape:
            raise InputError(
                f"smoothing: {len(factors)} factors for the {len(old)} channels of {site.activation}: "
                "calibrate this bundle itself"
            )
        _replace(initializers[name], old / factors)
    weight = numpy_helper.to_array(initializers[site.weight])
    _replace(initializers[site.weight], weight * np.expand_dims(factors, site.output_axis))


def _replace(tensor: onnx.TensorProto, values: npt.NDArray[np.floating]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, dtype=np.float32), tensor.name))
