// The functions of abi.h: checks a call, cuts the work into parts, runs them on torch's threads.
// Compiled for the oldest processor that there may be.
//
// What a result is does not depend on the number of threads: groups of rows are independent of
// each other in the forward pass, and dk and dv are added up in units and an order that the call
// alone decides.
#include <algorithm>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "image.h"
#include "instruction_sets.h"

#ifndef SB_BUILD
#define SB_BUILD ""
#endif

namespace sb {
namespace {

int64_t round_up(int64_t x) { return (x + 63) / 64 * 64; }
int64_t up(int64_t x, int64_t by) { return (x + by - 1) / by; }
// At least so many bytes, after which what comes next begins `by` bytes beyond a multiple of 4096,
// if this does at one: rows of one number of two arrays do not want the same sets of the cache.
int64_t apart(int64_t bytes, int64_t by) { return up(bytes, 4096) * 4096 + by; }

int64_t check(const SbCall& c, bool backward) {
  if (c.version != SPARSEBERT_CPU_VERSION) return SB_WRONG_VERSION;
  if (c.B < 0 || c.H < 1 || c.H_kv < 1 || c.H % c.H_kv || c.N < 1 || c.M < 1 || c.D < 1 ||
      c.D > 256 || c.dtype < 0 || c.dtype > SB_FLOAT16 || c.grad_dtype < 0 ||
      c.grad_dtype > SB_FLOAT16 || c.threads < 1 || (backward && !c.lse))
    return SB_WRONG_CALL;
  if (backward && c.grad_heads != c.H && c.grad_heads != c.H_kv) return SB_WRONG_CALL;
  for (const SbTensor* x : {&c.q, &c.k, &c.v, &c.o})
    if (!x->data) return SB_WRONG_CALL;
  for (const SbTensor* x : {&c.grad_o, &c.dq, &c.dk, &c.dv})
    if (backward && !x->data) return SB_WRONG_CALL;
  return SB_OK;
}

// The first group of a head before which the others cost as much.
int64_t group_at(const HeadPlan& h, int64_t cost) {
  return cost <= 0 ? 0 : std::lower_bound(h.cost, h.cost + h.groups, cost) - h.cost;
}

// What the heads that run cost, and where their slots are.
struct Layout {
  std::vector<int64_t> cost;   // before each head that runs; the sum of a batch at the end
  std::vector<int64_t> slots;  // likewise, in floats
  int64_t pairs;               // batch x heads that run
};

Layout lay_out(const SbCall& c, const Plan& p) {
  Layout l;
  l.cost.push_back(0), l.slots.push_back(0);
  for (int64_t i = 0; i < p.count; i++) {
    const HeadPlan& h = p.plan(i);
    l.cost.push_back(l.cost.back() + std::max<int64_t>(1, h.cost[h.groups]));
    l.slots.push_back(l.slots.back() + h.slots * slot_floats(c.D));
  }
  l.pairs = c.B * p.count;
  return l;
}

// How k and v are read.
enum Packing {
  IN_PLACE,
  BY_THREAD,  // each thread copies the rows of the key head that it works on
  BEFORE,     // all are copied first, for there are too few key heads for the threads
};

struct Memory {  // parts of the scratch, in bytes
  Packing packing;
  int64_t threads;
  int64_t work, pack, packed, slots, buffer, buffers;
  int64_t pieces;  // into which a key head's work is cut in the backward pass
  int64_t total;
};

// Loads of each row of k and v up to which copying does not pay. Those of short heads, all of
// which the cache holds as they are, may be loaded more often.
constexpr int64_t FEW_LOADS = 6, FEW_OF_SHORT = 20, SHORT = 64, SHORT_BACKWARD = 128;
constexpr int64_t LEAST_UNITS = 8;
// Of k and v of a key head, for these to be prefetched while the head before runs.
constexpr int64_t FETCHED = 2 << 20;

Memory plan_memory(const SbCall& c, const Plan& p, const Layout& l, const Kernels& k,
                   bool backward) {
  Memory m{};
  int64_t loads = 0;
  for (int64_t i = 0; i < p.count; i++) loads += p.plan(i).loads;
  const bool dense_rows = c.k.row == padded(c.D) && c.v.row == padded(c.D);
  const int64_t few = c.M <= (backward ? SHORT_BACKWARD : SHORT) ? FEW_OF_SHORT : FEW_LOADS;
  const bool packs =
      k.packs_always || (!dense_rows && loads * (backward ? 2 : 1) > few * c.M * c.H_kv);
  int64_t most = c.threads;
  if (backward) {
    const int64_t units = c.B * std::min(c.grad_heads, p.count);
    m.pieces = units ? std::max<int64_t>(1, up(LEAST_UNITS, units)) : 1;
    most = std::min(most, units * m.pieces);
  }
  m.threads = std::max<int64_t>(1, std::min<int64_t>(most, l.pairs * 64));
  m.packing = !packs                                            ? IN_PLACE
              : m.threads == 1 || c.B * c.H_kv >= 2 * m.threads ? BY_THREAD
                                                                : BEFORE;
  m.work = round_up(k.work_bytes(c.D));
  m.pack = packs ? 2 * apart(c.M * padded(c.D) * k.packed_bytes, 2048) : 0;
  m.packed = m.packing == BEFORE      ? m.pack * c.B * c.H_kv
             : m.packing == BY_THREAD ? m.pack * m.threads
                                      : 0;
  m.slots = apart(l.slots.back() * c.B * (int64_t)sizeof(float), backward ? 1024 : 0);
  if (backward) {
    m.buffer = round_up(2 * c.M * padded(c.D) * (int64_t)sizeof(float));
    m.buffers = m.pieces == 1 ? m.threads : c.B * c.grad_heads * m.pieces;
  }
  m.total = m.work * m.threads + m.packed + m.slots + m.buffer * m.buffers + 64;
  return m;
}

// A call about to run: where everything is.
struct Run {
  const SbCall& c;
  Plan plan;
  Layout layout;
  const Kernels* k;
  Memory memory;
  char *work, *packed, *buffers;
  float* slots;

  bool failed = false;  // the threads did not run

  explicit Run(const SbCall& call) : c(call) {}

  // f(i) for each of the items, on the threads.
  template <class F>
  void run(int64_t items, F f) {
    if (items <= 0) return;
    if (items == 1 || memory.threads == 1 || !c.parallel_for) {
      for (int64_t i = 0; i < items; i++) f(i);
      return;
    }
    auto part = [](int64_t begin, int64_t end, void* context) {
      for (int64_t i = begin; i < end; i++) (*(F*)context)(i);
    };
    failed = c.parallel_for(0, items, 1, part, &f) || failed;
  }

  int64_t prepare(bool backward) {
    if (int64_t wrong = check(c, backward)) return wrong;
    if (int64_t wrong = read_plan(c, plan)) return wrong;
    const Isa& isa = isas()[in_use];
    k = isa.bf16 && c.dtype == SB_BFLOAT16 ? isa.bf16(c.D) : isa.kernels(c.D, c.dtype);
    layout = lay_out(c, plan);
    memory = plan_memory(c, plan, layout, *k, backward);
    return SB_OK;
  }
  int64_t place() {
    if (c.scratch_bytes < memory.total || !c.scratch) return -memory.total;
    char* p = (char*)(((uintptr_t)c.scratch + 63) / 64 * 64);
    work = p, p += memory.work * memory.threads;
    packed = p, p += memory.packed;
    slots = (float*)p, p += memory.slots;
    buffers = p;
    return SB_OK;
  }

  int64_t element_bytes() const { return c.dtype == SB_FLOAT32 ? 4 : 2; }
  const char* rows_of(const SbTensor& x, int64_t b, int64_t head) const {
    return (const char*)x.data + (b * x.batch + head * x.head) * element_bytes();
  }
  // Of number i of the heads that run. `goes_on`: then the thread goes on to the next one.
  Task task(int64_t b, int64_t i, char* pack, bool goes_on = false) const {
    const int64_t h = plan.head(i), h_kv = h / (c.H / c.H_kv);
    Task t{};
    t.call = &c, t.plan = &plan.plan(i), t.b = b, t.h = h, t.h_kv = h_kv;
    t.in_place = memory.packing == IN_PLACE;
    if (c.dropout) t.dropout_key = dropout_key(c.dropout_seed, b, h);
    t.slots = slots + b * layout.slots.back() + layout.slots[i];
    if (t.in_place) {
      t.k = rows_of(c.k, b, h_kv), t.k_row = c.k.row;
      t.v = rows_of(c.v, b, h_kv), t.v_row = c.v.row;
    } else {
      if (memory.packing == BEFORE) pack = packed + (b * c.H_kv + h_kv) * memory.pack;
      t.k = pack, t.v = pack + memory.pack / 2;
      t.k_row = t.v_row = padded(c.D);
    }
    const int64_t bytes = 2 * c.M * c.D * element_bytes();
    if (goes_on && (memory.packing == BY_THREAD || (t.in_place && bytes <= FETCHED))) {
      const bool last = i + 1 == plan.count;
      const int64_t next_b = b + last, next = plan.head(last ? 0 : i + 1) / (c.H / c.H_kv);
      if (last || next != h_kv)
        t.next_k = rows_of(c.k, next_b, next), t.next_v = rows_of(c.v, next_b, next);
    }
    return t;
  }

  void pack_before() {
    constexpr int64_t ROWS = 256;
    const int64_t per = up(c.M, ROWS);
    if (memory.packing == BEFORE)
      run(c.B * c.H_kv * per, [&](int64_t i) {
        const int64_t b = i / per / c.H_kv, h = i / per % c.H_kv, from = i % per * ROWS;
        char* to = packed + (b * c.H_kv + h) * memory.pack;
        k->pack(c, b, h, from, std::min(c.M, from + ROWS), to, to + memory.pack / 2);
      });
  }
  // Thread number `thread` gets k and v of a key head, if it has not got them already.
  char* pack_for(int64_t thread, int64_t b, int64_t h_kv, int64_t& has) const {
    char* to = packed + thread * memory.pack;
    if (memory.packing == BY_THREAD && has != b * c.H_kv + h_kv) {
      has = b * c.H_kv + h_kv;
      k->pack(c, b, h_kv, 0, c.M, to, to + memory.pack / 2);
    }
    return to;
  }

  // f(pair, from, to, goes_on) for groups of the pairs, of cost [begin, end) in all; `goes_on` if
  // there are more of the next pair.
  template <class F>
  void groups_in(int64_t begin, int64_t end, F f) const {
    const int64_t batch = layout.cost.back();
    for (int64_t pair = 0; pair < layout.pairs; pair++) {
      const int64_t i = pair % plan.count, first = pair / plan.count * batch + layout.cost[i];
      const int64_t last = first + layout.cost[i + 1] - layout.cost[i];
      if (first >= end) break;
      if (last <= begin) continue;
      const HeadPlan& h = plan.plan(i);
      const int64_t from = group_at(h, begin - first);
      const int64_t to = last <= end ? h.groups : group_at(h, end - first);
      if (from < to) f(pair, from, to, last < end);
    }
  }

  void forward() {
    pack_before();
    const int64_t all = layout.cost.back() * c.B, threads = memory.threads;
    run(threads, [&](int64_t thread) {
      int64_t has = -1;
      groups_in(all * thread / threads, all * (thread + 1) / threads,
                [&](int64_t pair, int64_t from, int64_t to, bool goes_on) {
                  const int64_t b = pair / plan.count, i = pair % plan.count;
                  const int64_t h_kv = plan.head(i) / (c.H / c.H_kv);
                  char* pack = pack_for(thread, b, h_kv, has);
                  k->forward(task(b, i, pack, goes_on), from, to, work + thread * memory.work);
                });
    });
    if (layout.slots.back())
      run(layout.pairs, [&](int64_t pair) {
        const Task t = task(pair / plan.count, pair % plan.count, packed);
        if (t.plan->merged) k->merge(t);
      });
  }

  // In units of a batch and head of dk and dv, cut into pieces where these are few.
  struct Unit {
    int64_t b, head, first, last, piece;  // heads that run: [first, last)
    int64_t begin, end;                   // of the cost of its heads
  };
  std::vector<Unit> units() const {
    std::vector<Unit> found;
    const int64_t group = c.H / c.grad_heads;
    for (int64_t b = 0; b < c.B; b++)
      for (int64_t first = 0, last; first < plan.count; first = last) {
        const int64_t head = plan.head(first) / group;
        for (last = first; last < plan.count && plan.head(last) / group == head;) last++;
        const int64_t cost = layout.cost[last] - layout.cost[first];
        for (int64_t piece = 0; piece < memory.pieces; piece++)
          found.push_back({b, head, first, last, piece, cost * piece / memory.pieces,
                           cost * (piece + 1) / memory.pieces});
      }
    return found;
  }
  void backward() {
    pack_before();
    const std::vector<Unit> all = units();
    std::vector<int64_t> before{0};
    for (const Unit& u : all) before.push_back(before.back() + u.end - u.begin);
    const int64_t threads = memory.threads, floats = c.M * padded(c.D);
    run(threads, [&](int64_t thread) {
      int64_t has = -1;
      for (size_t n = 0; n < all.size(); n++) {
        // A unit is the thread's in whose share its middle lies.
        const int64_t middle = before[n] + before[n + 1];
        if (std::min(threads - 1, middle * threads / std::max<int64_t>(1, 2 * before.back())) !=
            thread)
          continue;
        const Unit& u = all[n];
        char* to = buffers +
                   memory.buffer * (memory.pieces == 1
                                        ? thread
                                        : (u.b * c.grad_heads + u.head) * memory.pieces + u.piece);
        float* dk = (float*)to;
        memset(dk, 0, 2 * floats * sizeof(float));
        for (int64_t i = u.first; i < u.last; i++) {
          const HeadPlan& h = plan.plan(i);
          const int64_t first = layout.cost[i] - layout.cost[u.first];
          const int64_t last = layout.cost[i + 1] - layout.cost[u.first];
          if (first >= u.end || last <= u.begin) continue;
          const int64_t from = group_at(h, u.begin - first),
                        end = last <= u.end ? h.groups : group_at(h, u.end - first);
          const int64_t h_kv = plan.head(i) / (c.H / c.H_kv);
          char* pack = pack_for(thread, u.b, h_kv, has);
          k->backward(task(u.b, i, pack), from, end, work + thread * memory.work, dk, dk + floats);
        }
        if (memory.pieces == 1) k->write_gradients(c, u.b, u.head, 0, c.M, dk, 1);
      }
    });
    if (memory.pieces > 1) sum_pieces(all);
    if (layout.slots.back())
      run(layout.pairs, [&](int64_t pair) {
        const Task t = task(pair / plan.count, pair % plan.count, packed);
        if (t.plan->merged) k->merge_dq(t);
      });
  }
  void sum_pieces(const std::vector<Unit>& all) {
    constexpr int64_t ROWS = 256;
    const int64_t per = up(c.M, ROWS), heads = (int64_t)all.size() / memory.pieces;
    run(heads * per, [&](int64_t n) {
      const Unit& u = all[n / per * memory.pieces];
      const int64_t from = n % per * ROWS;
      const char* at = buffers + memory.buffer * (u.b * c.grad_heads + u.head) * memory.pieces;
      k->write_gradients(c, u.b, u.head, from, std::min(c.M, from + ROWS), (const float*)at,
                         memory.pieces);
    });
  }
};

}  // namespace
}  // namespace sb

using namespace sb;

#define SB_EXPORT extern "C" __attribute__((visibility("default")))

SB_EXPORT int64_t sparsebert_cpu_version(void) { return SPARSEBERT_CPU_VERSION; }
SB_EXPORT const char* sparsebert_cpu_build(void) { return SB_BUILD; }
SB_EXPORT const char* sparsebert_cpu_isas(void) {
  static const std::string names = [] {
    std::string all;
    for (const Isa& isa : isas()) all += (all.empty() ? "" : " ") + std::string(isa.name);
    return all;
  }();
  return names.c_str();
}
SB_EXPORT int64_t sparsebert_cpu_use(const char* name) {
  for (size_t i = 0; i < isas().size(); i++)
    if (!strcmp(isas()[i].name, name)) {
      in_use = i;
      return SB_OK;
    }
  return SB_WRONG_CALL;
}
SB_EXPORT const char* sparsebert_cpu_features(void) { return isas()[in_use].bf16 ? "bf16" : ""; }

// A call, up to an error; `work` is what comes after it is checked.
template <class F>
static int64_t checked(const SbCall* call, bool backward, F work) {
  try {
    Run r(*call);
    if (int64_t code = r.prepare(backward)) return code;
    return work(r);
  } catch (const std::exception&) {  // std::bad_alloc: none may pass a C interface
    return SB_FAILED;
  }
}
static int64_t run(const SbCall* call, bool backward) {
  return checked(call, backward, [&](Run& r) -> int64_t {
    if (int64_t code = r.place()) return code;
    backward ? r.backward() : r.forward();
    return r.failed ? SB_FAILED : SB_OK;
  });
}

SB_EXPORT int64_t sparsebert_cpu_scratch(const SbCall* call, int64_t backward) {
  int64_t bytes = 0;
  const int64_t wrong = checked(call, backward, [&](Run& r) -> int64_t {
    bytes = r.memory.total;
    return SB_OK;
  });
  return wrong ? -wrong : bytes;
}
SB_EXPORT int64_t sparsebert_cpu_forward(const SbCall* call) { return run(call, false); }
SB_EXPORT int64_t sparsebert_cpu_backward(const SbCall* call) { return run(call, true); }
