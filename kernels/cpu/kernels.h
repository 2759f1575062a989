// What the driver knows of an instruction set: one table of functions.
#pragma once
#include <cstddef>

#include "abi.h"
#include "plan.h"

namespace sb {

// The plan of one distinct head, found in the image.
struct HeadPlan {
  int64_t groups;
  const int32_t* rows;
  const int32_t* tile_start;
  const int32_t* tile_cols;
  const uint16_t* tile_words;
  const int32_t* entry_start;
  const int32_t* entry_cols;
  const int32_t* slot;
  int64_t slots;
  int64_t merged;
  const int32_t* merged_rows;
  const int32_t* merged_start;
  const int32_t* merged_slots;
  const int64_t* cost;
  int64_t loads;
};

// One batch and query head of a call.
struct Task {
  const SbCall* call;
  const HeadPlan* plan;
  int64_t b, h, h_kv;
  const void *k, *v;  // rows of k and v: packed ones,
  bool in_place;      // or those of the call
  // Rows of the call's k and v in the key head that this thread comes to next, to be prefetched,
  // or 0.
  const char *next_k, *next_v;
  int64_t k_row, v_row;  // elements from one row to the next
  float* slots;          // partial results of its rows, see `slot_floats`
  uint32_t dropout_key;  // of the batch and head, see `dropout_key`
};

struct Kernels {
  int64_t packed_bytes;  // of an element of k and v, where packed and where read in place
  bool packs_always;     // it cannot read the call's own k and v
  // Bytes that one thread works in.
  int64_t (*work_bytes)(int64_t D);
  // Copy rows [from, to) of k and v of one batch and key head, padded; those that the key mask
  // hides are left out.
  void (*pack)(const SbCall&, int64_t b, int64_t h_kv, int64_t from, int64_t to, void* k, void* v);
  // Groups [from, to): o and LSE, or partial results in slots.
  void (*forward)(const Task&, int64_t from, int64_t to, void* work);
  void (*merge)(const Task&);
  // Groups [from, to): dq, or partial ones in slots; dk and dv, fp32 [M, padded D], are added to.
  void (*backward)(const Task&, int64_t from, int64_t to, void* work, float* dk, float* dv);
  void (*merge_dq)(const Task&);
  // Rows [from, to) of dk and dv of one batch and head: the sum of `count` buffers, each of which
  // has all of dk and then all of dv.
  void (*write_gradients)(const SbCall&, int64_t b, int64_t head, int64_t from, int64_t to,
                          const float* buffers, int64_t count);
};

// The Philox key of a batch and head, by which dropout's draw goes: the first word of
// Philox4x32-10 of (batch, head, 0, 0) under the seed, as in sparsebert/dropout.py.
static inline uint32_t dropout_key(int64_t seed, int64_t b, int64_t h) {
  uint32_t c[4] = {(uint32_t)b, (uint32_t)h, 0, 0};
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)((uint64_t)seed >> 32);
  for (int round = 0; round < 10; round++) {
    const uint64_t p = (uint64_t)c[0] * 0xD2511F53u, q = (uint64_t)c[2] * 0xCD9E8D57u;
    const uint32_t next[4] = {(uint32_t)(q >> 32) ^ c[1] ^ k0, (uint32_t)q,
                              (uint32_t)(p >> 32) ^ c[3] ^ k1, (uint32_t)p};
    for (int i = 0; i < 4; i++) c[i] = next[i];
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return c[0];
}

static inline int64_t padded(int64_t D) { return (D + 15) / 16 * 16; }
// o (not normalised), then the maximum and the sum of a partial result; or dq.
static inline int64_t slot_floats(int64_t D) { return padded(D) + 16; }

#define SB_DECLARE(isa)                             \
  namespace isa {                                   \
  const Kernels* kernels(int64_t D, int64_t dtype); \
  }
SB_DECLARE(generic)
#ifdef SB_HAS_AVX512
SB_DECLARE(avx512)
#endif
#ifdef SB_HAS_AVX512_BF16
namespace avx512_bf16 {
const Kernels* kernels(int64_t D);  // of bf16
}
#endif
#ifdef SB_HAS_AVX2
SB_DECLARE(avx2)
#endif
#ifdef SB_HAS_NEON
SB_DECLARE(neon)
#endif

}  // namespace sb
