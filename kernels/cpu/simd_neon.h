// NEON, of every 64-bit ARM: 4 lanes. See simd_portable.h for the meaning of the functions.
#pragma once
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace sb::SB_ISA {

constexpr int W = 4;
typedef float32x4_t vf;

static inline vf load(const float* p) { return vld1q_f32(p); }
static inline void store(float* p, vf x) { vst1q_f32(p, x); }
static inline vf set1(float x) { return vdupq_n_f32(x); }
static inline vf fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
static inline vf fma(vf a, float b, vf c) { return vfmaq_n_f32(c, a, b); }
static inline vf max(vf a, vf b) { return vmaxq_f32(a, b); }
static inline uint32x4_t lane_bits() {
  const uint32_t bits[4] = {1, 2, 4, 8};
  return vld1q_u32(bits);
}
static inline vf keep(vf x, uint32_t word, int shift, vf other) {
  return vbslq_f32(vtstq_u32(vdupq_n_u32(word >> shift), lane_bits()), x, other);
}
static inline float max_of(vf x) { return vmaxvq_f32(x); }
static inline float sum_of(vf x) { return vaddvq_f32(x); }

static inline vf load_bf16(const uint16_t* p) {
  return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
static inline void store_bf16(uint16_t* p, vf x) {
  uint32x4_t bits = vreinterpretq_u32_f32(x);
  uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  uint32x4_t whole = vbslq_u32(vceqq_f32(x, x), rounded, vdupq_n_u32(0x7fc00000));
  vst1_u16(p, vshrn_n_u32(whole, 16));
}
static inline vf load_f16(const uint16_t* p) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
static inline void store_f16(uint16_t* p, vf x) {
  vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x)));
}

static inline vf not_above(vf x, float most) { return vminq_f32(x, set1(most)); }
static inline vf not_below(vf x, float least) { return vmaxq_f32(x, set1(least)); }
static inline vf exp2_within(vf n, vf p) {
  int32x4_t e = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
  return vmulq_f32(p, vreinterpretq_f32_s32(e));
}
static inline vf round_to_int(vf x) { return vrndnq_f32(x); }
static inline vf mantissa_of(vf x, vf* n) {
  const int32x4_t bits = vreinterpretq_s32_f32(x);
  const int32x4_t e = vshrq_n_s32(vsubq_s32(bits, vdupq_n_s32(0x3f400000)), 23);
  *n = vcvtq_f32_s32(e);
  return vreinterpretq_f32_s32(vsubq_s32(bits, vshlq_n_s32(e, 23)));
}
static inline vf zero_below(vf x, float least, vf y) {
  return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(y), vcleq_f32(x, set1(least))));
}

typedef float32x4_t quad;
static inline void store_quad(float* p, quad x) { vst1q_f32(p, x); }
static inline quad sums_of_4(vf a, vf b, vf c, vf d) {
  return vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d));
}
static inline vf join(const quad* q) { return q[0]; }

static inline void transpose_16(const float* rows, int D, float* x) {
  for (int d = 0; d < D; d += 4)
#pragma GCC unroll 4
    for (int r = 0; r < 16; r += 4) {
      const float* p = rows + r * D + d;
      vf a = load(p), b = load(p + D), c = load(p + 2 * D), e = load(p + 3 * D);
      float64x2_t ab = vreinterpretq_f64_f32(vtrn1q_f32(a, b));  // a0 b0 a2 b2
      float64x2_t ce = vreinterpretq_f64_f32(vtrn1q_f32(c, e));
      float64x2_t ab_odd = vreinterpretq_f64_f32(vtrn2q_f32(a, b));  // a1 b1 a3 b3
      float64x2_t ce_odd = vreinterpretq_f64_f32(vtrn2q_f32(c, e));
      float* to = x + d * 16 + r;
      store(to, vreinterpretq_f32_f64(vtrn1q_f64(ab, ce)));
      store(to + 16, vreinterpretq_f32_f64(vtrn1q_f64(ab_odd, ce_odd)));
      store(to + 32, vreinterpretq_f32_f64(vtrn2q_f64(ab, ce)));
      store(to + 48, vreinterpretq_f32_f64(vtrn2q_f64(ab_odd, ce_odd)));
    }
}

typedef uint32x4_t vu;
static inline vu load_u32(const uint32_t* p) { return vld1q_u32(p); }
static inline vu set1_u32(uint32_t x) { return vdupq_n_u32(x); }
static inline vu xor_u32(vu a, vu b) { return veorq_u32(a, b); }
static inline vu product_u32(vu a, uint32_t by, vu* low) {
  uint32x4_t front = vreinterpretq_u32_u64(vmull_n_u32(vget_low_u32(a), by));
  uint32x4_t back = vreinterpretq_u32_u64(vmull_high_n_u32(a, by));
  *low = vuzp1q_u32(front, back);
  return vuzp2q_u32(front, back);
}
static inline uint32_t at_least_u32(vu a, uint32_t b) {
  return vaddvq_u32(vandq_u32(vcgeq_u32(a, set1_u32(b)), lane_bits()));
}

}  // namespace sb::SB_ISA
