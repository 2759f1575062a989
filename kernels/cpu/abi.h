// The C interface of the CPU kernels. Plain C: no torch, no Python; see library.py for the other
// side.
#pragma once
#include <stdint.h>

// Changes with every change of a structure or of a function here; library.py has the same number.
#define SPARSEBERT_CPU_VERSION 1

#ifdef __cplusplus
extern "C" {
#endif

// Strides count elements; the last dimension is contiguous. A tensor that is not there has data 0.
struct SbTensor {
  void* data;
  int64_t batch, head, row;
};

enum SbDtype { SB_FLOAT32 = 0, SB_BFLOAT16 = 1, SB_FLOAT16 = 2 };

enum SbError {
  SB_OK = 0,
  SB_WRONG_VERSION = 1,  // the call was written for another version of this interface
  SB_WRONG_PLAN = 2,     // the plan image is damaged, or not for tensors of these sizes
  SB_WRONG_CALL = 3,     // a size, dtype or pointer that no caller should pass
  SB_FAILED = 4,         // the system refused memory, or the threads did not run
};

// torch's `torch_parallel_for`: runs f(begin, end, context) over parts of [0, items).
typedef void (*SbRange)(int64_t begin, int64_t end, void* context);
// It returns 0, or what it likes if it did not run them all.
typedef int32_t (*SbParallelFor)(int64_t begin, int64_t end, int64_t grain, SbRange f,
                                 void* context);

// One call, forward or backward. All members are eight bytes, so both sides agree on the layout.
struct SbCall {
  int64_t version;
  const void* plan;  // the plan image, see plan.h
  int64_t plan_bytes;
  int64_t B, H, H_kv, N, M, D;
  int64_t dtype;                       // of q, k, v, o and grad_o
  int64_t grad_dtype;                  // of dk and dv; dq has that of q
  int64_t grad_heads;                  // heads of dk and dv: H_kv (added up) or H
  struct SbTensor q, k, v, o;          // [B, H, N, D], [B, H_kv, M, D]; o is written by forward
  struct SbTensor grad_o, dq, dk, dv;  // backward only
  float* lse;                          // [B, H, N], contiguous, natural logarithm; forward: or 0
  const float* grad_lse;               // the same, or 0
  const uint8_t* key_mask;             // [B, M], contiguous, 1 = a real token; or 0
  int64_t dropout;                     // 1 if there is any
  int64_t dropout_seed;
  int64_t dropout_threshold;  // elements with a hash below it are dropped
  double dropout_factor;      // 1 / (1 - p)
  double scale;
  void* scratch;  // at least sparsebert_cpu_scratch bytes
  int64_t scratch_bytes;
  int64_t threads;
  SbParallelFor parallel_for;
};

int64_t sparsebert_cpu_version(void);

// What this library was built of and by, as "key=value" pairs with "; " between them:
// "sources=<first 16 digits of their SHA-256>; compiler=<name and version>; target=<of the code>".
const char* sparsebert_cpu_build(void);

// The instruction sets that the library has and this processor can run, best first, with spaces
// between them: "avx512 avx2 generic".
const char* sparsebert_cpu_isas(void);

// Use one of them from now on; returns 0, or SB_WRONG_CALL for a name that is not among them.
int64_t sparsebert_cpu_use(const char* isa);

// What the instruction set in use has beside: "bf16" if products of bf16 run natively, else "".
const char* sparsebert_cpu_features(void);

// Bytes of scratch that the call needs, or a negative SbError. A call with too little says so,
// too.
int64_t sparsebert_cpu_scratch(const struct SbCall* call, int64_t backward);

// Return SB_OK, an SbError, or where the scratch is too small the bytes that are needed, negative.
int64_t sparsebert_cpu_forward(const struct SbCall* call);
int64_t sparsebert_cpu_backward(const struct SbCall* call);

#ifdef __cplusplus
}
#endif
