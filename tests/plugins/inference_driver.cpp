// Runs the CPU inference kernels of every instruction set that is here on odd sizes, in buffers of the exact size, and
// compares with loops in double: built with sanitizers by test_ort_ops.py, and for other architectures by hand
// (docs/kernels.md). Prints the worst error of each instruction set; exits with 1 on a wrong result.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "cpu/inference.h"

using namespace mscope::inference;

namespace {

std::mt19937 random_bits(7);

float draw(float low, float high) { return std::uniform_real_distribution<float>(low, high)(random_bits); }

uint16_t bfloat16_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Numbers between 2^-14 and 2^15, truncated: any float16 will do as an input.
uint16_t float16_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const int exponent = static_cast<int>((bits >> 23) & 0xff) - 112;
  if (exponent <= 0 || exponent >= 31) return 0;
  return static_cast<uint16_t>(((bits >> 16) & 0x8000) | (static_cast<uint32_t>(exponent) << 10) | ((bits >> 13) & 0x3ff));
}

// A tensor in its storage type, in a heap block without a byte to spare: one element too far is seen.
struct Values {
  Storage storage;
  int64_t count;
  std::unique_ptr<char[]> bytes;

  Values(Storage s, int64_t n, float low, float high) : storage(s), count(n) {
    bytes.reset(new char[static_cast<size_t>(n) * (s == Storage::f32 ? 4 : 2)]);
    for (int64_t i = 0; i < n; ++i) set(i, draw(low, high));
  }
  void set(int64_t i, float value) {
    if (storage == Storage::f32) reinterpret_cast<float*>(bytes.get())[i] = value;
    else reinterpret_cast<uint16_t*>(bytes.get())[i] = storage == Storage::f16 ? float16_of(value) : bfloat16_of(value);
  }
  double at(int64_t i) const { return to_float(storage, bytes.get(), i); }
  const float* floats() const { return reinterpret_cast<const float*>(bytes.get()); }
  void* data() { return bytes.get(); }
  char* from(int64_t i) { return bytes.get() + i * (storage == Storage::f32 ? 4 : 2); }
};

double silu(double v) { return v / (1.0 + std::exp(-v)); }
double softplus(double v) { return v > 30.0 ? v + std::exp(-v) : std::log1p(std::exp(v)); }

struct Sizes {
  int64_t batch, tokens, channels, states, rank, taps;
  float delta_low, delta_high;
};

constexpr Sizes kSizes[] = {
    {1, 1, 1, 1, 1, 2, -3, 1},    {2, 2, 3, 4, 5, 3, -3, 1},      {1, 50, 17, 16, 12, 4, -7, 1},
    {3, 33, 40, 8, 3, 4, -7, 1},  {1, 65, 16, 24, 17, 4, -7, 1},  {0, 4, 5, 6, 7, 4, -7, 1},
    {1, 40, 7, 70, 2, 4, -7, 1},  {1, 34, 31, 13, 48, 4, 1, 40},  {1, 20, 9, 16, 2, 4, -90, -20},
    {1, 40, 19, 5, 2, 4, 1e4, 1e6},
};

double error_of(double got, double expected, double scale, Storage storage) {
  const double rounding = storage == Storage::f32 ? 0.0 : storage == Storage::f16 ? 0x1p-11 : 0x1p-8;
  const double smallest = storage == Storage::f16 ? 0x1p-25 : 1e-37;
  const double error = (std::fabs(got - expected) - rounding * std::fabs(expected) - smallest) / (scale + 1e-30);
  return error >= 0.0 || std::isnan(got) != std::isnan(expected) ? error : 0.0;
}

// Numbers in double that are read as Values are.
struct Exact {
  std::vector<double> numbers;
  explicit Exact(int64_t count) : numbers(static_cast<size_t>(count), 0.0) {}
  double at(int64_t i) const { return numbers[static_cast<size_t>(i)]; }
  double& operator[](int64_t i) { return numbers[static_cast<size_t>(i)]; }
};

// One direction in double, added to y, with the sum of absolute values for the error's scale.
template <class X, class BC>
void reference_scan(const Sizes& s, const X& x, const std::vector<double>& delta, const BC& bc, int64_t row, int64_t at_b,
                    const Values& A, const Values& D, bool reverse, std::vector<double>& y, std::vector<double>& scale) {
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t c = 0; c < s.channels; ++c) {
      std::vector<double> h(static_cast<size_t>(s.states), 0.0), magnitude(h);
      for (int64_t i = 0; i < s.tokens; ++i) {
        const int64_t token = b * s.tokens + (reverse ? s.tokens - 1 - i : i);
        const size_t out = static_cast<size_t>(token * s.channels + c);
        const double xt = x.at(static_cast<int64_t>(out)), d = delta[out];
        for (int64_t n = 0; n < s.states; ++n) {
          const double B = bc.at(token * row + at_b + n), C = bc.at(token * row + at_b + s.states + n);
          const double decay = std::exp(d * A.at(c * s.states + n));
          double &state = h[static_cast<size_t>(n)], &size = magnitude[static_cast<size_t>(n)];
          state = decay * state + d * B * xt;
          size = decay * size + std::fabs(d * B * xt);
          y[out] += C * state;
          scale[out] += std::fabs(C) * size;
        }
        y[out] += D.at(c) * xt;
        scale[out] += std::fabs(D.at(c) * xt);
      }
    }
}

double bidirectional(const Kernels& kernels, const Sizes& s, Storage storage) {
  const int64_t rows = s.batch * s.tokens, columns = s.rank + 2 * s.states;
  Values xz(storage, rows * 2 * s.channels, -2, 2), y(storage, rows * s.channels, 0, 0);
  ScanProblem p{};
  p.storage = p.inner = storage;
  p.batch = s.batch, p.tokens = s.tokens, p.channels = s.channels, p.states = s.states, p.rank = s.rank;
  p.softplus = true;
  p.directions = 2;
  p.z = xz.from(s.channels);
  p.z_row = 2 * s.channels;
  p.y = y.data();
  std::vector<double> expected(static_cast<size_t>(rows * s.channels), 0.0), scale(expected);
  std::unique_ptr<float[]> packed[2];
  std::vector<Values> kept;
  kept.reserve(16);
  for (int i = 0; i < 2; ++i) {
    kept.emplace_back(storage, rows * s.channels, -1.0f, 1.0f);
    Values& x = kept.back();
    kept.emplace_back(storage, rows * columns, -1.0f, 1.0f);
    Values& dbc = kept.back();
    Values dt_weight(storage, s.channels * s.rank, -0.3f, 0.3f), bias(Storage::f32, s.channels, s.delta_low, s.delta_high);
    Values A(Storage::f32, s.channels * s.states, -8.0f, -0.01f), D(Storage::f32, s.channels, -1, 1);
    packed[i].reset(new float[static_cast<size_t>(packed_scan_floats(kernels.width, s.channels, s.states, s.rank))]);
    pack_scan(kernels.width, storage, s.channels, s.states, s.rank, A.floats(), dt_weight.data(), bias.floats(), D.floats(),
              packed[i].get());
    std::vector<double> delta(expected.size());
    for (int64_t token = 0; token < rows; ++token)
      for (int64_t c = 0; c < s.channels; ++c) {
        double sum = bias.at(c);
        for (int64_t r = 0; r < s.rank; ++r) sum += dbc.at(token * columns + r) * dt_weight.at(c * s.rank + r);
        delta[static_cast<size_t>(token * s.channels + c)] = softplus(sum);
      }
    reference_scan(s, x, delta, dbc, columns, s.rank, A, D, i == 1, expected, scale);
    ScanDirection& d = p.direction[i];
    d = {packed[i].get(), x.data(), s.channels, dbc.data(), columns, dbc.from(s.rank), dbc.from(s.rank + s.states),
         columns, columns, i == 1};
  }
  const int64_t tasks = kernels.scan_tasks(p);
  std::unique_ptr<float[]> sum(new float[expected.size() + 1]);
  std::unique_ptr<float[]> state(new float[static_cast<size_t>(tasks * s.states * kernels.width + 1)]);
  p.sum = sum.get();
  p.state = state.get();
  for (int64_t task = tasks - 1; task >= 0; --task) kernels.scan(p, task);  // any order is right
  double worst = 0.0;
  for (int64_t i = 0; i < rows * s.channels; ++i) {
    const double gate = silu(xz.at(i / s.channels * 2 * s.channels + s.channels + i % s.channels)) / 2;
    const size_t at = static_cast<size_t>(i);
    worst = std::fmax(worst, error_of(y.at(i), expected[at] * gate, std::fabs(scale[at] * gate), storage));
  }
  // A very negative delta's rounding counts as often in softplus, which is an exponential there.
  if (s.delta_low < 0) worst /= 1.0 - s.delta_low;
  return worst;
}

// The reference's convolution and SiLU of one token and channel, backward or not.
double convolved(const Values& x, int64_t row, int64_t token, int64_t tokens, int64_t c, int64_t taps, const Values& weight,
                 const Values& bias, bool backward) {
  double sum = bias.at(c);
  for (int64_t j = 0; j < taps; ++j) {
    const int64_t reach = (taps - 1 - j) * (backward ? 1 : -1), t = token % tokens + reach;
    if (t >= 0 && t < tokens) sum += weight.at(c * taps + j) * x.at((token + reach) * row + c);
  }
  return silu(sum);
}

// VimMixer: both phases against the references of their parts. What it is divided by: y's own sum of absolute values, for
// B and C the sums behind them, and twice that, as x and dt have errors of their own.
double mixer(const Kernels& kernels, const Sizes& s, Storage storage) {
  const int64_t rows = s.batch * s.tokens, C = s.channels, columns = s.rank + 2 * s.states;
  const int64_t padded = padded_columns(kernels.width, columns);
  Values xz(storage, rows * 2 * C, -2, 2), y(storage, rows * C, 0, 0);
  std::vector<double> expected(static_cast<size_t>(rows * C), 0.0), scale(expected), ignored(expected);
  std::unique_ptr<float[]> x(new float[static_cast<size_t>(2 * rows * C)]), dbc(new float[static_cast<size_t>(2 * rows * padded)]);
  std::unique_ptr<float[]> conv[2], x_proj[2], packed[2];
  std::vector<Values> kept;
  kept.reserve(16);
  ProjectProblem p{};
  p.conv.storage = storage;
  p.conv.batch = s.batch, p.conv.tokens = s.tokens, p.conv.channels = C, p.conv.taps = s.taps;
  p.conv.x = xz.data();
  p.conv.x_row = 2 * C;
  p.conv.directions = 2;
  p.columns = padded;
  ScanProblem q{};
  q.storage = storage, q.inner = Storage::f32;
  q.batch = s.batch, q.tokens = s.tokens, q.channels = C, q.states = s.states, q.rank = s.rank;
  q.softplus = true;
  q.directions = 2;
  q.z = xz.from(C);
  q.z_row = 2 * C;
  q.y = y.data();
  for (int i = 0; i < 2; ++i) {
    Values weight(storage, C * s.taps, -1, 1), bias(storage, C, -1, 1), product(storage, C * columns, -0.5f, 0.5f);
    Values dt_weight(storage, C * s.rank, -0.3f, 0.3f), dt_bias(Storage::f32, C, s.delta_low, s.delta_high);
    Values A(Storage::f32, C * s.states, -8.0f, -0.01f), D(Storage::f32, C, -1, 1);
    conv[i].reset(new float[static_cast<size_t>(packed_conv_floats(kernels.width, C, s.taps))]);
    pack_conv(kernels.width, storage, C, s.taps, weight.data(), bias.data(), conv[i].get());
    x_proj[i].reset(new float[static_cast<size_t>(C * padded)]);
    pack_x_proj(kernels.width, storage, C, columns, product.data(), x_proj[i].get());
    packed[i].reset(new float[static_cast<size_t>(packed_scan_floats(kernels.width, C, s.states, s.rank))]);
    pack_scan(kernels.width, storage, C, s.states, s.rank, A.floats(), dt_weight.data(), dt_bias.floats(), D.floats(),
              packed[i].get());
    float *const x_i = x.get() + i * rows * C, *const dbc_i = dbc.get() + i * rows * padded;
    p.conv.direction[i] = {conv[i].get(), x_i, i == 1};
    p.weight[i] = x_proj[i].get();
    p.dbc[i] = dbc_i;
    q.direction[i] = {packed[i].get(), x_i, C, dbc_i, padded, dbc_i + s.rank, dbc_i + s.rank + s.states, padded, padded, i == 1};

    // The same in double; x and B, C once as they are and once as the sums of absolute values behind them.
    Exact fine(rows * C), between(rows * columns), magnitude(rows * columns);
    std::vector<double> delta(expected.size());
    for (int64_t token = 0; token < rows; ++token) {
      for (int64_t c = 0; c < C; ++c) fine[token * C + c] = convolved(xz, 2 * C, token, s.tokens, c, s.taps, weight, bias, i == 1);
      for (int64_t k = 0; k < columns; ++k)
        for (int64_t c = 0; c < C; ++c) {
          const double term = fine[token * C + c] * product.at(c * columns + k);
          between[token * columns + k] += term;
          magnitude[token * columns + k] += std::fabs(term);
        }
      for (int64_t c = 0; c < C; ++c) {
        double sum = dt_bias.at(c);
        for (int64_t r = 0; r < s.rank; ++r) sum += between[token * columns + r] * dt_weight.at(c * s.rank + r);
        delta[static_cast<size_t>(token * C + c)] = softplus(sum);
      }
    }
    reference_scan(s, fine, delta, between, columns, s.rank, A, D, i == 1, expected, ignored);
    Exact size(fine);
    for (int64_t k = 0; k < rows * C; ++k) size[k] = std::fabs(size[k]) + 0.5;  // the convolution's terms are up to 2
    reference_scan(s, size, delta, magnitude, columns, s.rank, A, D, i == 1, ignored, scale);
  }
  const int64_t tasks = kernels.scan_tasks(q);
  std::unique_ptr<float[]> sum(new float[expected.size() + 1]);
  std::unique_ptr<float[]> state(new float[static_cast<size_t>(tasks * s.states * kernels.width + 1)]);
  q.sum = sum.get();
  q.state = state.get();
  for (int64_t task = kernels.project_tasks(p) - 1; task >= 0; --task) kernels.project(p, task);
  for (int64_t task = tasks - 1; task >= 0; --task) kernels.scan(q, task);
  double worst = 0.0;
  for (int64_t i = 0; i < rows * C; ++i) {
    const double gate = silu(xz.at(i / C * 2 * C + C + i % C)) / 2;
    const size_t at = static_cast<size_t>(i);
    worst = std::fmax(worst, error_of(y.at(i), expected[at] * gate, 2 * std::fabs(scale[at] * gate), storage));
  }
  if (s.delta_low < 0) worst /= 1.0 - s.delta_low;
  return worst;
}

double convolution(const Kernels& kernels, const Sizes& s, Storage storage) {
  const int64_t rows = s.batch * s.tokens, row = s.channels + 3;
  Values x(storage, rows * row - (rows > 0 ? 3 : 0), -2, 2);  // the last row ends with x: z is not read
  ConvProblem p{};
  p.storage = storage;
  p.batch = s.batch, p.tokens = s.tokens, p.channels = s.channels, p.taps = s.taps;
  p.x = x.data();
  p.x_row = row;
  p.directions = 2;
  std::vector<Values> weight, bias, y;
  std::unique_ptr<float[]> packed[2];
  for (int i = 0; i < 2; ++i) {
    weight.emplace_back(storage, s.channels * s.taps, -1.0f, 1.0f);
    bias.emplace_back(storage, s.channels, -1.0f, 1.0f);
    y.emplace_back(storage, rows * s.channels, 0.0f, 0.0f);
    packed[i].reset(new float[static_cast<size_t>(packed_conv_floats(kernels.width, s.channels, s.taps))]);
    pack_conv(kernels.width, storage, s.channels, s.taps, weight[i].data(), bias[i].data(), packed[i].get());
    p.direction[i] = {packed[i].get(), y[i].data(), i == 1};
  }
  for (int64_t task = kernels.conv_tasks(p) - 1; task >= 0; --task) kernels.conv(p, task);
  double worst = 0.0;
  for (int i = 0; i < 2; ++i)
    for (int64_t k = 0; k < rows * s.channels; ++k) {
      const int64_t token = k / s.channels, c = k % s.channels, t = token % s.tokens;
      double sum = bias[i].at(c), scale = std::fabs(sum);
      for (int64_t j = 0; j < s.taps; ++j) {
        const int64_t reach = (s.taps - 1 - j) * (i == 1 ? 1 : -1);
        if (t + reach < 0 || t + reach >= s.tokens) continue;
        const double term = weight[i].at(c * s.taps + j) * x.at((token + reach) * row + c);
        sum += term;
        scale += std::fabs(term);
      }
      worst = std::fmax(worst, error_of(y[i].at(k), silu(sum), 1.1 * scale, storage));
    }
  return worst;
}

}  // namespace

int main() {
  bool good = true;
  int found = 0;
  for (const char* isa : {"scalar", "neon", "avx2", "avx512"}) {
    if (!force_isa(isa)) continue;
    ++found;
    double worst = 0.0;
    for (const Sizes& sizes : kSizes)
      for (Storage storage : {Storage::f32, Storage::f16, Storage::bf16}) {
        if (storage == Storage::f16 && sizes.delta_high > 1000) continue;  // y is beyond the largest float16
        worst = std::fmax(worst, std::fmax(bidirectional(*kernels(), sizes, storage), convolution(*kernels(), sizes, storage)));
        worst = std::fmax(worst, mixer(*kernels(), sizes, storage));
      }
    std::printf("%s: worst error %.3g of what was summed\n", isa, worst);
    good = good && worst < 1e-6;
  }
  return good && found > 0 ? 0 : 1;
}
