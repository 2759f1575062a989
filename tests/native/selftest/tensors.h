// Random numbers, and tensors of any dtype and strides whose every byte is accounted for.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "abi.h"

namespace selftest {

constexpr double INF = std::numeric_limits<double>::infinity();
constexpr double NOT_A_NUMBER = std::numeric_limits<double>::quiet_NaN();

class Random {  // splitmix64
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  double uniform() { return (double)(bits() >> 11) * 0x1p-53; }
  bool chance(double p) { return uniform() < p; }
  int64_t below(int64_t n) { return (int64_t)(bits() % (uint64_t)n); }
  int64_t between(int64_t low, int64_t high) { return low + below(high - low + 1); }
  // From 1 to most, small ones as often as large ones.
  int64_t size(int64_t most) {
    return std::min<int64_t>(most, (int64_t)std::exp(uniform() * std::log((double)most + 1)));
  }
  double normal() {
    return std::sqrt(-2 * std::log(1 - uniform())) * std::cos(6.283185307179586 * uniform());
  }
  template <class T>
  void shuffle(std::vector<T>& x) {
    for (size_t i = x.size(); i > 1; i--) std::swap(x[i - 1], x[(size_t)below((int64_t)i)]);
  }

 private:
  uint64_t state_;
};

// What a dtype can hold: significand bits, the exponent of the last bit of its smallest numbers,
// and its largest number.
struct Format {
  int digits, least;
  double most;
  double unit() const { return std::ldexp(1, -digits); }  // largest relative rounding error
  double tiny() const { return std::ldexp(1, least); }
};
inline Format format_of(int64_t dtype) {
  if (dtype == SB_BFLOAT16) return {8, -133, 0x1.fep127};
  if (dtype == SB_FLOAT16) return {11, -24, 65504};
  return {24, -149, 0x1.fffffep127};
}
inline int64_t bytes_of(int64_t dtype) { return dtype == SB_FLOAT32 ? 4 : 2; }

// The nearest number of a dtype, ties to even.
inline double rounded(double x, int64_t dtype) {
  if (!std::isfinite(x) || x == 0) return x;
  const Format f = format_of(dtype);
  int exponent;
  std::frexp(x, &exponent);
  const double quantum = std::ldexp(1, std::max(exponent - f.digits, f.least));
  const double near = std::nearbyint(x / quantum) * quantum;
  return std::abs(near) > f.most ? std::copysign(INF, x) : near;
}

inline double decoded(const char* at, int64_t dtype) {
  if (dtype == SB_FLOAT32) {
    float x;
    memcpy(&x, at, 4);
    return x;
  }
  uint16_t half;
  memcpy(&half, at, 2);
  const int fraction_bits = dtype == SB_BFLOAT16 ? 7 : 10, bias = dtype == SB_BFLOAT16 ? 127 : 15;
  const int fraction = half & ((1 << fraction_bits) - 1);
  const int exponent = (half & 0x7fff) >> fraction_bits;
  double size = exponent
                    ? std::ldexp((1 << fraction_bits) + fraction, exponent - bias - fraction_bits)
                    : std::ldexp(fraction, 1 - bias - fraction_bits);
  if (exponent == 2 * bias + 1) size = fraction ? NOT_A_NUMBER : INF;
  return half & 0x8000 ? -size : size;
}

// x must be a number of the dtype.
inline void encode(double x, char* at, int64_t dtype) {
  if (dtype == SB_FLOAT32 || dtype == SB_BFLOAT16) {  // the upper half of an fp32 number
    float single = (float)x;
    memcpy(at, (char*)&single + (dtype == SB_BFLOAT16 ? 2 : 0), (size_t)bytes_of(dtype));
    return;
  }
  const int sign = std::signbit(x) ? 0x8000 : 0;
  int half, exponent;
  x = std::abs(x);
  const double fraction = std::frexp(x, &exponent);
  if (std::isnan(x))
    half = 0x7e00;
  else if (std::isinf(x))
    half = 0x7c00;
  else if (x < 0x1p-14)
    half = (int)(x * 0x1p24);
  else
    half = ((exponent + 14) << 10) + (int)(fraction * 2048) - 1024;
  const uint16_t word = (uint16_t)(half | sign);
  memcpy(at, &word, 2);
}

// A tensor [B, H, N, D] somewhere in a block of memory that ends where it ends. What lies between
// its elements is NaN, and is to stay as it is.
class Tensor {
 public:
  int64_t dtype = 0, B = 0, H = 0, N = 0, D = 0;
  SbTensor view{};

  Tensor() = default;
  Tensor(int64_t dtype, int64_t B, int64_t H, int64_t N, int64_t D, Random& random)
      : dtype(dtype), B(B), H(H), N(N), D(D) {
    auto gap = [&] { return random.chance(0.5) ? 0 : random.below(20); };
    const int layout = (int)random.below(3);
    if (layout == 0) {  // [B, H, N, D]
      view.row = D + gap(), view.head = N * view.row + gap(), view.batch = H * view.head + gap();
    } else if (layout == 1) {  // [B, N, H, D]
      view.head = D + gap(), view.row = H * view.head + gap(), view.batch = N * view.row + gap();
    } else {  // [N, B, H, D]
      view.head = D + gap(), view.batch = H * view.head + gap(), view.row = B * view.batch + gap();
    }
    const int64_t before = random.chance(0.5) ? 0 : random.below(16);
    const int64_t extent =
        before + (B - 1) * view.batch + (H - 1) * view.head + (N - 1) * view.row + D;
    bytes_ = (size_t)(extent * bytes_of(dtype));
    memory_.reset(new char[bytes_]);
    memset(memory_.get(), 0xff, bytes_);
    view.data = memory_.get() + before * bytes_of(dtype);
  }
  char* at(int64_t b, int64_t h, int64_t n, int64_t d) const {
    return (char*)view.data +
           (b * view.batch + h * view.head + n * view.row + d) * bytes_of(dtype);
  }
  double get(int64_t b, int64_t h, int64_t n, int64_t d) const {
    return decoded(at(b, h, n, d), dtype);
  }
  void set(int64_t b, int64_t h, int64_t n, int64_t d, double x) {
    encode(rounded(x, dtype), at(b, h, n, d), dtype);
  }
  void fill(Random& random, double size) {
    for (int64_t b = 0; b < B; b++)
      for (int64_t h = 0; h < H; h++)
        for (int64_t n = 0; n < N; n++)
          for (int64_t d = 0; d < D; d++) set(b, h, n, d, size * random.normal());
  }
  void spoil(int64_t b, int64_t h, int64_t n, Random& random) {
    const double what[] = {NOT_A_NUMBER, INF, -INF};
    const int64_t one = random.chance(0.5) ? random.below(D) : -1;
    for (int64_t d = 0; d < D; d++)
      if (one < 0 || one == d) set(b, h, n, d, what[random.below(3)]);
  }
  void forget() { memset(memory_.get(), 0xff, bytes_); }
  std::vector<char> bytes() const { return {memory_.get(), memory_.get() + bytes_}; }
  // Whether nothing was written beside the elements of those heads.
  bool is_intact(const std::vector<char>& head_written) const {
    std::vector<char> all = bytes();
    for (int64_t b = 0; b < B; b++)
      for (int64_t h = 0; h < H; h++)
        for (int64_t n = 0; n < N && head_written[(size_t)h]; n++)
          memset(all.data() + (at(b, h, n, 0) - memory_.get()), 0xff,
                 (size_t)(D * bytes_of(dtype)));
    for (char byte : all)
      if (byte != (char)0xff) return false;
    return true;
  }

 private:
  std::unique_ptr<char[]> memory_;
  size_t bytes_ = 0;
};

}  // namespace selftest
