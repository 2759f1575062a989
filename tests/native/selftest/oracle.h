// Attention and its gradients in double precision, entry by entry, and how far fp32 may be off.
//
// The bounds are running error bounds. A sum of n products in fp32, in whatever order, is off by
// at most LAMBDA sqrt(n) u times the sum of their sizes, u = 2^-24, but for a chance of about 2
// exp(-LAMBDA^2 / 2) under the worst distribution of roundings (Higham and Mary, SIAM J. Sci.
// Comput. 41, 2019). All else follows from the formulas: a score that is off by E makes its
// probability off by a factor of at most exp(2 E), and so on.
#pragma once
#include "case.h"

namespace selftest {

constexpr double LAMBDA = 6, U = 0x1p-24;
constexpr double FLUSHED = 0x1p-125;  // probabilities below it may be 0

struct Expected {  // of a tensor [B, H, N, D]: values, and how far off a result may be
  int64_t H = 0, N = 0, D = 0;
  std::vector<double> value, bound;

  Expected() = default;
  Expected(int64_t B, int64_t H, int64_t N, int64_t D)
      : H(H), N(N), D(D), value((size_t)(B * H * N * D), 0), bound(value) {}
  size_t row(int64_t b, int64_t h, int64_t n) const { return (size_t)(((b * H + h) * N + n) * D); }
};

struct Truth {
  Expected o, lse, dq, dk, dv;
};

// The first word of Philox2x32-7 of (query, key) under `head_key`.
inline uint32_t philox_2x32_7(uint32_t head_key, uint32_t query, uint32_t key) {
  uint32_t c0 = query, c1 = key;
  for (int round = 0; round < 7; round++, head_key += 0x9E3779B9u) {
    const uint64_t product = (uint64_t)c0 * 0xD256D193u;
    c0 = (uint32_t)(product >> 32) ^ head_key ^ c1;
    c1 = (uint32_t)product;
  }
  return c0;
}

// The first word of Philox4x32-10 of (batch, head, 0, 0) under a seed: the key of their draw.
inline uint32_t philox_4x32_10(uint64_t seed, uint32_t batch, uint32_t head) {
  uint32_t c0 = batch, c1 = head, c2 = 0, c3 = 0;
  uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; round++, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) {
    const uint64_t product0 = (uint64_t)c0 * 0xD2511F53u, product1 = (uint64_t)c2 * 0xCD9E8D57u;
    c0 = (uint32_t)(product1 >> 32) ^ c1 ^ key0;
    c2 = (uint32_t)(product0 >> 32) ^ c3 ^ key1;
    c1 = (uint32_t)product1, c3 = (uint32_t)product0;
  }
  return c0;
}

namespace detail {

inline double sum_error(double n) { return LAMBDA * std::sqrt(n) * U; }

struct Entry {  // a column that a row attends to
  int64_t col;
  double factor;       // of dropout: 0 or 1 / (1 - p)
  double score, size;  // and the sum of the sizes of what it is made of
  double p, p_error;
};

// A row's sums: its entries' probabilities, its LSE.
struct Row {
  std::vector<Entry> entries;
  double lse = -INF, lse_error = 0, score_error = 0, small = 0;
  bool infinite = false;  // a score is -Inf
};

inline std::vector<double> widened(const Tensor& x, int64_t b, int64_t h) {
  std::vector<double> all;
  for (int64_t n = 0; n < x.N; n++)
    for (int64_t d = 0; d < x.D; d++) all.push_back(x.get(b, h, n, d));
  return all;
}

inline Row make_row(const Case& c, int64_t b, int64_t i, int64_t n, const double* q,
                    const std::vector<double>& k, double p_unit) {
  Row row;
  const uint32_t head_key = philox_4x32_10((uint64_t)c.seed, (uint32_t)b, (uint32_t)c.head(i));
  double most = -INF, largest = 0, size = 0;
  for (int64_t j = 0; j < c.M; j++) {
    if (!c.attends(b, i, n, j)) continue;
    Entry e{j, 1, 0, 0, 0, 0};
    for (int64_t d = 0; d < c.D; d++) {
      e.score += q[d] * k[(size_t)(j * c.D + d)];
      e.size += std::abs(q[d] * k[(size_t)(j * c.D + d)]);
    }
    e.score *= c.scale, e.size *= std::abs(c.scale);
    if (c.dropout) {
      const bool kept = philox_2x32_7(head_key, (uint32_t)n, (uint32_t)j) >= c.threshold;
      e.factor = kept ? c.dropout_factor : 0;
    }
    if (!(e.score <= most)) most = e.score;  // NaN, too
    row.infinite = row.infinite || e.score == -INF;
    largest = std::max(largest, std::abs(e.score));
    size = std::max(size, e.size);
    row.entries.push_back(e);
  }
  if (row.entries.empty() || row.infinite) return row;
  double sum = 0;
  for (Entry& e : row.entries) sum += e.p = std::exp(e.score - most);
  row.lse = most + std::log(sum);
  row.score_error = sum_error((double)c.D + 4) * size + 8 * U * largest;
  row.small = sum_error((double)row.entries.size()) + 40 * U;
  row.lse_error = row.score_error + row.small + 2 * U * std::abs(row.lse);
  double upper = 0;
  auto above = [&](double p) { return std::min(1.0, p * std::exp(2 * row.score_error)); };
  for (Entry& e : row.entries) upper += above(e.p /= sum);
  for (Entry& e : row.entries) {
    // What it can lose is no more than what the others can win.
    const double below = std::max(e.p * std::exp(-2 * row.score_error), 1 - (upper - above(e.p)));
    e.p_error = std::max(above(e.p) - e.p, e.p - below) + e.p * (row.small + p_unit) + FLUSHED;
  }
  return row;
}

}  // namespace detail

// What a call computes. `p_unit`: the rounding of probabilities and of their gradients where the
// kernel multiplies them in the tensors' own dtype, else 0.
inline Truth compute_truth(const Case& c, double p_unit) {
  using namespace detail;
  Truth t{Expected(c.B, c.H, c.N, c.D), Expected(c.B, c.H, c.N, 1), Expected(c.B, c.H, c.N, c.D),
          Expected(c.B, c.grad_heads, c.M, c.D), Expected(c.B, c.grad_heads, c.M, c.D)};
  const Format format = format_of(c.dtype), grad_format = format_of(c.grad_dtype);
  // Instructions that multiply bf16 take numbers below 2^-126 for 0, and give 0 for them.
  const double tiny = p_unit > 0 ? FLUSHED : 0;
  // Sums of as many terms as a key has: of all rows of all heads that share it.
  const double of_key = sum_error((double)(c.N * c.H / c.grad_heads) + 4) + p_unit;
  for (int64_t b = 0; b < c.B; b++)
    for (int64_t i = 0; i < c.count(); i++) {
      const int64_t h = c.head(i), h_kv = c.key_head(h), h_grad = h / (c.H / c.grad_heads);
      const std::vector<double> qs = widened(c.q, b, h), gs = widened(c.grad_o, b, h);
      const std::vector<double> k = widened(c.k, b, h_kv), v = widened(c.v, b, h_kv);
      for (int64_t n = 0; n < c.N; n++) {
        const double *q = &qs[(size_t)(n * c.D)], *g = &gs[(size_t)(n * c.D)];
        const Row row = make_row(c, b, i, n, q, k, p_unit);
        t.lse.value[t.lse.row(b, h, n)] = row.lse;
        t.lse.bound[t.lse.row(b, h, n)] = row.lse_error;
        if (row.entries.empty()) continue;
        const double row_size = (double)row.entries.size(), of_row = sum_error(row_size + 4);
        double *o = &t.o.value[t.o.row(b, h, n)], *o_bound = &t.o.bound[t.o.row(b, h, n)];
        if (row.infinite) {  // p = 0 times what is there, or 0 / 0: anything goes
          for (int64_t d = 0; d < c.D; d++) {
            o_bound[d] = t.dq.bound[t.dq.row(b, h, n) + (size_t)d] = INF;
            for (const Entry& e : row.entries)
              t.dk.bound[t.dk.row(b, h_grad, e.col) + (size_t)d] =
                  t.dv.bound[t.dv.row(b, h_grad, e.col) + (size_t)d] = INF;
          }
          t.lse.bound[t.lse.row(b, h, n)] = INF;
          continue;
        }
        for (const Entry& e : row.entries)
          for (int64_t d = 0; d < c.D; d++) {
            const double x = v[(size_t)(e.col * c.D + d)];
            o[d] += e.factor * e.p * x;
            o_bound[d] += e.factor * (e.p_error + of_row * e.p) * std::abs(x);
          }
        double delta = 0, delta_error = 0, delta_size = 0;
        for (int64_t d = 0; d < c.D; d++) {
          o_bound[d] += std::abs(o[d]) * format.unit() + format.tiny() + tiny * row_size;
          delta += g[d] * o[d];
          delta_error += std::abs(g[d]) * o_bound[d];
          delta_size += std::abs(g[d] * o[d]);
        }
        const double grad_lse =
            c.grad_lse.empty() ? 0 : (double)c.grad_lse[(size_t)((b * c.H + h) * c.N + n)];
        delta -= grad_lse;
        delta_error += sum_error((double)c.D + 4) * delta_size + 2 * U * std::abs(grad_lse);
        double *dq = &t.dq.value[t.dq.row(b, h, n)], *dq_bound = &t.dq.bound[t.dq.row(b, h, n)];
        for (const Entry& e : row.entries) {
          // The backward pass makes p of the score and the LSE, both rounded.
          const double off =
              2 * row.score_error + row.small + 3 * U * (std::abs(row.lse) + std::abs(e.score));
          const double p = e.p, up = std::min(1.0, p * std::exp(off));
          const double p_error =
              std::max(up - p, p - p * std::exp(-off)) + p * row.small + FLUSHED;
          double dp = 0, dp_size = 0;
          for (int64_t d = 0; d < c.D; d++) {
            dp += g[d] * v[(size_t)(e.col * c.D + d)];
            dp_size += std::abs(g[d] * v[(size_t)(e.col * c.D + d)]);
          }
          dp = e.factor ? e.factor * dp : 0, dp_size = e.factor ? e.factor * dp_size : 0;
          const double dp_error = sum_error((double)c.D + 4) * dp_size;
          const double ds = p * (dp - delta) * c.scale;
          const double ds_error =
              std::abs(c.scale) *
              (p_error * std::abs(dp - delta) + (p + p_error) * (dp_error + delta_error) +
               (4 * U + p_unit) * p * (std::abs(dp) + std::abs(delta)));
          const double weight = e.factor ? e.factor * p : 0;
          const double weight_error = e.factor ? e.factor * p_error + 4 * U * weight : 0;
          double* dk = &t.dk.value[t.dk.row(b, h_grad, e.col)];
          double* dv = &t.dv.value[t.dv.row(b, h_grad, e.col)];
          double* dk_bound = &t.dk.bound[t.dk.row(b, h_grad, e.col)];
          double* dv_bound = &t.dv.bound[t.dv.row(b, h_grad, e.col)];
          for (int64_t d = 0; d < c.D; d++) {
            const double x = k[(size_t)(e.col * c.D + d)];
            dq[d] += ds * x;
            dq_bound[d] += (ds_error + of_row * std::abs(ds)) * std::abs(x);
            dk[d] += ds * q[d];
            dk_bound[d] += (ds_error + of_key * std::abs(ds)) * std::abs(q[d]);
            dv[d] += weight * g[d];
            dv_bound[d] += (weight_error + of_key * weight) * std::abs(g[d]);
          }
        }
        for (int64_t d = 0; d < c.D; d++)
          dq_bound[d] += std::abs(dq[d]) * format.unit() + format.tiny() + tiny * row_size;
      }
    }
  for (Expected* x : {&t.dk, &t.dv})
    for (size_t n = 0; n < x->value.size(); n++)
      if (x->bound[n] != 0)  // else no row attends to the key: exactly 0
        x->bound[n] += std::abs(x->value[n]) * grad_format.unit() + grad_format.tiny() +
                       tiny * (double)(c.N * c.H);
  return t;
}

}  // namespace selftest
