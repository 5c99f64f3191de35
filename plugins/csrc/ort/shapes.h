// Shapes, and the check of them against the contract with both sides in the message.
#pragma once

#include <stdint.h>

#include <initializer_list>
#include <string>
#include <utility>

#include "ort/status.h"

namespace mscope {
namespace ort {

constexpr int64_t kUnknown = -1;  // an extent not known when the kernel is created

// Unknown where one of them is, or where no tensor can have as many: what a model declares may be any number.
inline int64_t times(int64_t a, int64_t b) {
  int64_t product = 0;
  return a < 0 || b < 0 || __builtin_mul_overflow(a, b, &product) ? kUnknown : product;
}
inline int64_t plus(int64_t a, int64_t b) {
  int64_t sum = 0;
  return a < 0 || b < 0 || __builtin_add_overflow(a, b, &sum) ? kUnknown : sum;
}

// At most three axes: no tensor of the contract has more.
struct Shape {
  static constexpr int kMaxRank = 3;
  bool known = false;  // false: nothing is known of the tensor yet
  int rank = 0;        // may exceed kMaxRank, of which only the first are kept
  int64_t extent[kMaxRank] = {kUnknown, kUnknown, kUnknown};

  int64_t at(int axis) const { return known && axis < rank && axis < kMaxRank ? extent[axis] : kUnknown; }
};

inline std::string to_text(const int64_t* extents, int rank) {
  std::string text = "(";
  for (int i = 0; i < rank; ++i) {
    if (i > 0) text += ", ";
    text += i >= Shape::kMaxRank ? "..." : extents[i] == kUnknown ? "?" : std::to_string(extents[i]);
    if (i >= Shape::kMaxRank) break;
  }
  return text + (rank == 1 ? ",)" : ")");
}

// Checks the inputs of one node. `context` says where symbols such as C and N come from, for the messages.
class ShapeCheck {
 public:
  ShapeCheck(const std::string& node, std::string context) : node_(node), context_(std::move(context)) {}

  // `symbols` is the contract's text for `expected`, as in "(B, L, C)". Unknown extents match anything.
  void expect(const char* name, const Shape& got, std::initializer_list<int64_t> expected, const char* symbols) const {
    if (!got.known) return;
    bool fits = got.rank == static_cast<int>(expected.size());
    int axis = 0;
    for (int64_t extent : expected) {
      const int64_t have = got.at(axis++);
      if (fits && extent != kUnknown && have != kUnknown && extent != have) fits = false;
    }
    if (fits) return;
    throw InvalidArgument(node_ + ": " + name + " has shape " + to_text(got.extent, got.rank) + ", expected " + symbols +
                          " = " + to_text(expected.begin(), static_cast<int>(expected.size())) + context_);
  }

  [[noreturn]] void refuse(const std::string& what) const { throw InvalidArgument(node_ + ": " + what + context_); }

 private:
  const std::string& node_;
  std::string context_;
};

}  // namespace ort
}  // namespace mscope
