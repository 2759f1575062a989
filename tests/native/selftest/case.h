// A random call: sizes, masks, tensors, and everything that a call may have beside.
#pragma once
#include <string>

#include "image.h"

namespace selftest {

struct Case {
  int64_t B, H, H_kv, N, M, D, dtype, grad_dtype, grad_heads;
  std::vector<Mask> masks;        // distinct ones
  std::vector<int32_t> head_map;  // of each head that runs: its mask; empty: all have the first
  std::vector<int32_t> listed;    // the heads that run; empty: all
  Tensor q, k, v, o, grad_o, dq, dk, dv;
  std::vector<float> lse, grad_lse;
  std::vector<uint8_t> key_mask;
  bool dropout = false;
  int64_t seed = 0;
  uint32_t threshold = 0;
  double dropout_factor = 1, scale = 1;
  std::string about;

  int64_t count() const { return head_map.empty() ? H : (int64_t)head_map.size(); }
  int64_t head(int64_t i) const { return listed.empty() ? i : listed[(size_t)i]; }
  const Mask& mask(int64_t i) const {
    return masks[head_map.empty() ? 0 : (size_t)head_map[(size_t)i]];
  }
  int64_t key_head(int64_t h) const { return h / (H / H_kv); }
  bool attends(int64_t b, int64_t i, int64_t row, int64_t col) const {
    return mask(i).at(row, col) && (key_mask.empty() || key_mask[(size_t)(b * M + col)]);
  }
  // Heads of q and o, or of dk and dv, that a call writes.
  std::vector<char> written(int64_t heads) const {
    std::vector<char> found((size_t)heads, 0);
    for (int64_t i = 0; i < count(); i++) found[(size_t)(head(i) / (H / heads))] = 1;
    return found;
  }
};

namespace detail {

inline Mask random_mask(int64_t N, int64_t M, Random& random) {
  Mask mask{N, M, std::vector<char>((size_t)(N * M), 0)};
  const int kind = (int)random.below(6);
  const double density = random.chance(0.2) ? random.uniform() : 0.3 * random.uniform();
  const int64_t width = random.size(M), global = random.below(3);
  for (int64_t i = 0; i < N; i++) {
    const double own = density * 2 * random.uniform();
    for (int64_t j = 0; j < M; j++) {
      bool on = true;  // kind 0: full
      if (kind == 1) on = random.chance(density);
      if (kind == 2) on = random.chance(own);
      if (kind == 3) on = std::abs(i * M / N - j) < width || i < global || j < global;
      if (kind == 4) on = i / 16 % 3 == j / 16 % 3 || random.chance(0.02);
      if (kind == 5) on = (i % 16 + 1) * (j % 7 + 1) % 5 == 0 || j < global;
      mask.at(i, j) = on;
    }
  }
  if (random.chance(0.3))  // rows and columns of which nothing is left
    for (int64_t i = 0; i < N; i++)
      if (random.chance(0.2))
        for (int64_t j = 0; j < M; j++) mask.at(i, j) = 0;
  if (random.chance(0.3))
    for (int64_t j = 0; j < M; j++)
      if (random.chance(0.2))
        for (int64_t i = 0; i < N; i++) mask.at(i, j) = 0;
  return mask;
}

inline int64_t pick(std::vector<int64_t> some, Random& random) {
  return some[(size_t)random.below((int64_t)some.size())];
}

inline void choose_sizes(Case& c, Random& random) {
  auto length = [&] {
    return random.chance(0.3) ? pick({1, 15, 16, 17, 31, 33, 64, 65, 127, 129}, random)
                              : random.size(256);
  };
  c.N = length();
  c.M = random.chance(0.5) ? c.N : length();
  if (random.chance(0.04)) c.N = random.between(1, 20), c.M = random.between(500, 1500);
  c.D = random.chance(0.7) ? pick({8, 12, 16, 20, 32, 40, 64, 72, 80, 96, 128, 256}, random)
                           : random.between(1, 256);
  c.H_kv = random.between(1, 3);
  c.H = c.H_kv * random.between(1, 3);
  c.B = random.between(1, 3);
  constexpr int64_t MOST = 3000000;
  while (c.B > 1 && c.B * c.H * c.N * c.M * c.D > MOST) c.B--;
  while (c.H > 1 && c.B * c.H * c.N * c.M * c.D > MOST) c.H = c.H_kv = c.H / 2;
  c.dtype = random.below(3);
  c.grad_dtype = random.chance(0.5) ? c.dtype : random.below(3);
  c.grad_heads = random.chance(0.5) ? c.H : c.H_kv;
}

inline void choose_heads(Case& c, Random& random) {
  c.masks.push_back(random_mask(c.N, c.M, random));
  if (random.chance(0.3)) return;
  while (random.chance(0.6)) c.masks.push_back(random_mask(c.N, c.M, random));
  std::vector<int32_t> some;
  for (int32_t h = 0; h < c.H; h++)
    if (random.chance(0.6)) some.push_back(h);
  if (!some.empty() && random.chance(0.5)) c.listed = some;
  const size_t count = c.listed.empty() ? (size_t)c.H : c.listed.size();
  for (size_t i = 0; i < count; i++)
    c.head_map.push_back((int32_t)random.below((int64_t)c.masks.size()));
}

// NaN and Inf: in rows that none sees, and in rows that some see.
inline void spoil(Case& c, bool visible, Random& random) {
  const double share = 0.3 * random.uniform();
  for (int64_t b = 0; b < c.B; b++) {
    for (int64_t h = 0; h < c.H_kv; h++)
      for (int64_t j = 0; j < c.M; j++) {
        bool seen = false;
        for (int64_t i = 0; i < c.count() && !seen; i++)
          for (int64_t row = 0; row < c.N && c.key_head(c.head(i)) == h && !seen; row++)
            seen = c.attends(b, i, row, j);
        if (random.chance(seen ? (visible ? share : 0) : 0.5)) c.k.spoil(b, h, j, random);
        if (random.chance(seen ? (visible ? share : 0) : 0.5)) c.v.spoil(b, h, j, random);
      }
    for (int64_t i = 0; i < c.count(); i++)
      for (int64_t row = 0; row < c.N; row++) {
        bool dead = true;
        for (int64_t j = 0; j < c.M && dead; j++) dead = !c.attends(b, i, row, j);
        if (random.chance(dead ? 0.5 : (visible ? share : 0)))
          c.q.spoil(b, c.head(i), row, random);
        if (random.chance(dead ? 0.5 : (visible ? share : 0)))
          c.grad_o.spoil(b, c.head(i), row, random);
      }
  }
}

}  // namespace detail

// Tensors for the sizes and masks that a case has, and what may stand beside.
inline void fill_case(Case& c, Random& random) {
  auto tensor = [&](int64_t dtype, int64_t heads, int64_t rows) {
    return Tensor(dtype, c.B, heads, rows, c.D, random);
  };
  c.q = tensor(c.dtype, c.H, c.N), c.k = tensor(c.dtype, c.H_kv, c.M);
  c.v = tensor(c.dtype, c.H_kv, c.M), c.o = tensor(c.dtype, c.H, c.N);
  c.grad_o = tensor(c.dtype, c.H, c.N), c.dq = tensor(c.dtype, c.H, c.N);
  c.dk = tensor(c.grad_dtype, c.grad_heads, c.M), c.dv = tensor(c.grad_dtype, c.grad_heads, c.M);
  const char* dtypes[] = {"fp32", "bf16", "fp16"};
  auto text = [](int64_t x) { return std::to_string(x); };
  c.about = "B=" + text(c.B) + " H=" + text(c.H) + " H_kv=" + text(c.H_kv) + " N=" + text(c.N) +
            " M=" + text(c.M) + " D=" + text(c.D) + " " + dtypes[c.dtype] + ", gradients " +
            dtypes[c.grad_dtype] + " of " + text(c.grad_heads) + " heads";

  double size = 1;
  if (random.chance(0.15)) {  // very large scores
    size = std::pow(10, random.uniform() * (c.dtype == SB_FLOAT16 ? 2 : 8));
    c.about += ", size " + std::to_string(size);
  }
  c.q.fill(random, size), c.k.fill(random, size);
  c.v.fill(random, 1), c.grad_o.fill(random, 1);
  c.scale = random.chance(0.5) ? 1 / std::sqrt((double)c.D) : 0.02 + random.uniform();
  if (random.chance(0.1)) c.scale = -c.scale;
  if (random.chance(0.4)) {
    c.about += ", key mask";
    const double share = random.uniform();
    for (int64_t n = 0; n < c.B * c.M; n++) c.key_mask.push_back(random.chance(share));
  }
  if (random.chance(0.4)) {
    c.about += ", dropout";
    const double p = random.chance(0.1) ? 0 : 0.9 * random.uniform();
    c.threshold = (uint32_t)(p * 0x1p32);
    c.dropout_factor = 1 / (1 - p);
    c.dropout = true, c.seed = (int64_t)random.bits();
  }
  if (random.chance(0.4)) {
    c.about += ", grad_lse";
    for (int64_t n = 0; n < c.B * c.H * c.N; n++) c.grad_lse.push_back((float)random.normal());
  }
  if (random.chance(0.4)) {
    const bool visible = random.chance(0.5);
    c.about += visible ? ", NaN in hidden and visible rows" : ", NaN in hidden rows";
    detail::spoil(c, visible, random);
  }
  c.lse.resize((size_t)(c.B * c.H * c.N));
}

inline Case make_case(Random& random) {
  Case c{};
  detail::choose_sizes(c, random);
  detail::choose_heads(c, random);
  fill_case(c, random);
  return c;
}

}  // namespace selftest
