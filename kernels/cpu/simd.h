// One vector of fp32 lanes, and what the kernels do with it, for the instruction set that the
// compiler was told. Each header has the same functions; the portable one says what they mean.
#pragma once
#if defined(__AVX512F__)
#include "simd_avx512.h"
#elif defined(__AVX2__)
#include "simd_avx2.h"
#elif defined(SB_NEON)
#include "simd_neon.h"
#else
#include "simd_portable.h"
#endif
