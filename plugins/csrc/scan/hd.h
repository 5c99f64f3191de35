// Marks of functions that both the host's and CUDA's compiler take, and the name of the instruction set that this
// translation unit is compiled for.
#pragma once

#if defined(__CUDACC__)
#define MSCOPE_HD __host__ __device__ __forceinline__
#else
#define MSCOPE_HD inline __attribute__((always_inline))
#endif

#define MSCOPE_INLINE inline __attribute__((always_inline))

// One binary holds the same source compiled for several instruction sets. Everything that depends on it lives in an
// inline namespace of its name: two objects with one mangled name and different instructions break the one-definition
// rule, and the linker would keep whichever comes first. For the same reason a `*_isa.cpp` must not instantiate templates
// of the standard library that may be emitted out of line (std::vector, std::function, ...): those names carry no ISA.
// The builder passes MSCOPE_ISA_NAME for `*_isa.cpp`; other translation units get the name of what their flags allow.
#if !defined(MSCOPE_ISA_NAME)
#if defined(__AVX512F__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && defined(__AVX512BW__)
#define MSCOPE_ISA_NAME avx512
#elif defined(__AVX2__) && defined(__FMA__)
#define MSCOPE_ISA_NAME avx2
#elif defined(__aarch64__) && defined(__ARM_NEON)
#define MSCOPE_ISA_NAME neon
#else
#define MSCOPE_ISA_NAME scalar
#endif
#endif

#define MSCOPE_STRINGIFY_(x) #x
#define MSCOPE_STRINGIFY(x) MSCOPE_STRINGIFY_(x)
#define MSCOPE_CONCAT_(a, b) a##b
#define MSCOPE_CONCAT(a, b) MSCOPE_CONCAT_(a, b)
#define MSCOPE_ISA_STRING MSCOPE_STRINGIFY(MSCOPE_ISA_NAME)

// MSCOPE_ISA_IS_<name> is 1 for the instruction set of this translation unit. The preprocessor cannot compare names, so
// each known name maps to a number.
#define MSCOPE_ISA_ID_scalar 0
#define MSCOPE_ISA_ID_neon 1
#define MSCOPE_ISA_ID_avx2 2
#define MSCOPE_ISA_ID_avx512 3
#define MSCOPE_ISA_ID MSCOPE_CONCAT(MSCOPE_ISA_ID_, MSCOPE_ISA_NAME)
