// Choice of the instruction set, and the packing of parameters: what is compiled once.

#include "cpu/inference.h"

#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <limits>

#include "scan/isa.h"

namespace mscope {

#define MSCOPE_DECLARE(isa) const inference::Kernels* inference_kernels_##isa();
MSCOPE_FOR_EACH_ISA(MSCOPE_DECLARE)
#undef MSCOPE_DECLARE

namespace inference {
namespace {

constexpr float kLog2E = 1.44269504088896341f;
// Beyond this power of two the table-driven exponential loses its index (cpu/inference_exp.h).
constexpr float kFastExponent = 65536.0f;
constexpr int kNotForced = -1;

std::atomic<int> forced{kNotForced};

const Kernels* kernels_of(Isa isa) {
  switch (isa) {
#define MSCOPE_CASE(name) \
  case Isa::name:         \
    return inference_kernels_##name();
    MSCOPE_FOR_EACH_ISA(MSCOPE_CASE)
#undef MSCOPE_CASE
    default: return nullptr;
  }
}

int64_t blocks_of(int64_t width, int64_t channels) { return (channels + width - 1) / width; }

float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu, mantissa = half & 0x3ffu;
  uint32_t bits;
  if (exponent == 0x1f) {
    bits = sign | 0x7f800000u | (mantissa << 13);
  } else if (exponent != 0) {
    bits = sign | ((exponent + 112u) << 23) | (mantissa << 13);
  } else {
    const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // 2^-24, the smallest half
    memcpy(&bits, &magnitude, sizeof bits);
    bits |= sign;
  }
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace

const Kernels* kernels() {
  const int isa = forced.load(std::memory_order_relaxed);
  if (isa != kNotForced) return kernels_of(static_cast<Isa>(isa));
  Isa chosen;
  return choose_isa(getenv("MSCOPE_ISA"), &chosen) ? kernels_of(chosen) : nullptr;
}

bool force_isa(const char* name) {
  if (name == nullptr || *name == '\0' || strcmp(name, "auto") == 0) {
    forced.store(kNotForced, std::memory_order_relaxed);
    return true;
  }
  Isa chosen;
  if (!choose_isa(name, &chosen) || kernels_of(chosen) == nullptr) return false;
  forced.store(static_cast<int>(chosen), std::memory_order_relaxed);
  return true;
}

float to_float(Storage storage, const void* values, int64_t index) {
  if (storage == Storage::f32) return static_cast<const float*>(values)[index];
  const uint16_t bits = static_cast<const uint16_t*>(values)[index];
  if (storage == Storage::f16) return half_to_float(bits);
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

int64_t packed_conv_floats(int64_t width, int64_t channels, int64_t taps) {
  return blocks_of(width, channels) * (taps + 1) * width;
}

void pack_conv(int64_t width, Storage storage, int64_t channels, int64_t taps, const void* weight, const void* bias,
               float* packed) {
  for (int64_t first = 0; first < channels; first += width) {
    for (int64_t j = 0; j <= taps; ++j) {
      for (int64_t i = 0; i < width; ++i) {
        const int64_t c = first + i;
        float value = 0.0f;
        if (c < channels) value = j < taps ? to_float(storage, weight, c * taps + j) : to_float(storage, bias, c);
        *packed++ = value;
      }
    }
  }
}

int64_t padded_columns(int64_t width, int64_t columns) { return blocks_of(width, columns) * width; }

void pack_x_proj(int64_t width, Storage storage, int64_t channels, int64_t columns, const void* weight, float* packed) {
  const int64_t padded = padded_columns(width, columns);
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < padded; ++i) *packed++ = i < columns ? to_float(storage, weight, c * columns + i) : 0.0f;
}

int64_t packed_scan_floats(int64_t width, int64_t channels, int64_t states, int64_t rank) {
  return blocks_of(width, channels) * (states + rank + 3) * width;
}

void pack_scan(int64_t width, Storage storage, int64_t channels, int64_t states, int64_t rank, const float* A,
               const void* dt_weight, const float* delta_bias, const float* D, float* packed) {
  for (int64_t first = 0; first < channels; first += width) {
    float* const limit = packed + (states + rank + 2) * width;
    for (int64_t i = 0; i < width; ++i) {
      const int64_t c = first + i;
      const bool idle = c >= channels;  // lanes of padding compute with tame numbers
      float largest = 0.0f;
      bool grows = false;
      for (int64_t n = 0; n < states; ++n) {
        const float a2 = idle ? -1.0f : A[c * states + n] * kLog2E;
        packed[n * width + i] = a2;
        if (!(a2 <= 0.0f)) grows = true;
        if (-a2 > largest) largest = -a2;
      }
      for (int64_t r = 0; r < rank; ++r)
        packed[(states + r) * width + i] = idle ? 0.0f : to_float(storage, dt_weight, c * rank + r);
      packed[(states + rank) * width + i] = idle || delta_bias == nullptr ? 0.0f : delta_bias[c];
      packed[(states + rank + 1) * width + i] = idle ? 0.0f : D[c];
      // A that is positive or NaN is outside the contract: correct all the same, by the slow exponential.
      if (grows) limit[i] = -1.0f;
      else limit[i] = largest > 0.0f ? kFastExponent / largest : std::numeric_limits<float>::max();
    }
    packed += (states + rank + 3) * width;
  }
}

}  // namespace inference
}  // namespace mscope
