// What every implementation of the ops has in common (docs/ops.md): the storage types, and the inputs in their order.
#pragma once

namespace mscope {

// How tensors marked T in the contract are stored. Arithmetic is float32 whatever it is.
enum class Storage : int { f32, f16, bf16 };

enum ConvInput { kConvXz, kConvWeight, kConvBias, kConvWeightB, kConvBiasB, kConvInputs };

enum ScanInput {
  kScanX,
  kScanDelta,
  kScanA,
  kScanB,
  kScanC,
  kScanD,
  kScanZ,
  kScanDeltaBias,
  kScanInputs
};

// The second direction's parameters follow the first one's.
enum BidirectionalParameter { kDtWeight, kDtBias, kDecay, kSkip, kParametersADirection };
enum BidirectionalInput {
  kBidirectionalXz,
  kBidirectionalX,
  kBidirectionalDbc,
  kBidirectionalParameters,
  kBidirectionalParametersB = kBidirectionalParameters + kParametersADirection,
  kBidirectionalInputs = kBidirectionalParametersB + kParametersADirection
};

}  // namespace mscope
