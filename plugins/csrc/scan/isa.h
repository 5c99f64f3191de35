// Which instruction sets this binary holds and this machine runs, and the choice between them. Only for code that is
// compiled once (the dispatchers), never for `*_isa.cpp`.
#pragma once

#include <string.h>

#include <initializer_list>

namespace mscope {

// In rising order of preference. Which of them `*_isa.cpp` are compiled for is the builder's choice, by architecture
// (mscope/plugins/build.py); scalar always is.
enum class Isa { scalar, neon, avx2, avx512 };

inline const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::neon: return "neon";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::scalar: break;
  }
  return "scalar";
}

inline bool isa_runs_here(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  switch (isa) {
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::scalar: return true;
    case Isa::neon: break;
  }
  return false;
#elif defined(__aarch64__)
  return isa == Isa::neon || isa == Isa::scalar;
#else
  return isa == Isa::scalar;
#endif
}

inline Isa best_isa() {
  for (Isa isa : {Isa::avx512, Isa::avx2, Isa::neon})
    if (isa_runs_here(isa)) return isa;
  return Isa::scalar;
}

// The instruction set of that name, or the best one for null, "" or "auto". False where the name is unknown, or the
// machine or this binary lacks it: asking for one and getting another would make a measurement lie.
inline bool choose_isa(const char* name, Isa* chosen) {
  if (name == nullptr || *name == '\0' || strcmp(name, "auto") == 0) {
    *chosen = best_isa();
    return true;
  }
  for (Isa isa : {Isa::scalar, Isa::neon, Isa::avx2, Isa::avx512}) {
    if (strcmp(name, isa_name(isa)) == 0 && isa_runs_here(isa)) {
      *chosen = isa;
      return true;
    }
  }
  return false;
}

}  // namespace mscope
