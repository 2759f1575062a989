// Damaged images and impossible calls: each is refused, with the code that says why.
#pragma once
#include <cstdio>
#include <functional>

#include "case.h"

namespace selftest {

inline SbCall make_call(const Case& c, const Image& image) {
  SbCall call{};
  call.version = SPARSEBERT_CPU_VERSION;
  call.plan = image.data(), call.plan_bytes = image.bytes();
  call.B = c.B, call.H = c.H, call.H_kv = c.H_kv, call.N = c.N, call.M = c.M, call.D = c.D;
  call.dtype = c.dtype, call.grad_dtype = c.grad_dtype, call.grad_heads = c.grad_heads;
  call.q = c.q.view, call.k = c.k.view, call.v = c.v.view, call.o = c.o.view;
  call.grad_o = c.grad_o.view, call.dq = c.dq.view, call.dk = c.dk.view, call.dv = c.dv.view;
  call.lse = (float*)c.lse.data();
  call.grad_lse = c.grad_lse.empty() ? nullptr : c.grad_lse.data();
  call.key_mask = c.key_mask.empty() ? nullptr : c.key_mask.data();
  call.dropout = c.dropout, call.dropout_seed = c.seed;
  call.dropout_threshold = c.threshold, call.dropout_factor = c.dropout_factor;
  call.scale = c.scale, call.threads = 1;
  return call;
}

class Refusals {
 public:
  int failed = 0;

  // A change of a good call or of its image, and the code that must come of it, in both passes or
  // in the backward pass alone.
  void expect(int64_t code, const char* what, const std::function<void(SbCall&, Image&)>& change,
              bool backward_only = false) {
    Image image = image_;
    SbCall call = make_call(case_, image);
    change(call, image);
    std::vector<char> scratch((size_t)1 << 20);
    call.scratch = scratch.data(), call.scratch_bytes = (int64_t)scratch.size();
    for (bool backward : {false, true}) {
      const int64_t wanted = backward_only && !backward ? 0 : code;
      const int64_t bytes = sparsebert_cpu_scratch(&call, backward);
      tell(what, "scratch", bytes < 0 ? -bytes : 0, wanted == SB_FAILED ? 0 : wanted);
      tell(what, backward ? "backward" : "forward",
           backward ? sparsebert_cpu_backward(&call) : sparsebert_cpu_forward(&call), wanted);
    }
  }

 private:
  void tell(const char* what, const char* where, int64_t got, int64_t wanted) {
    if (got == wanted) return;
    failed++;
    printf("%s: %s gives %d, not %d\n", what, where, (int)got, (int)wanted);
  }
  static Case small() {  // four heads with two masks, three of which run
    Random random(1);
    Case c{};
    c.B = 2, c.H = c.grad_heads = 4, c.H_kv = 2, c.N = 19, c.M = 23, c.D = 5;
    for (int64_t u = 0; u < 2; u++) c.masks.push_back(detail::random_mask(c.N, c.M, random));
    c.head_map = {0, 1, 1}, c.listed = {0, 2, 3};
    fill_case(c, random);
    return c;
  }
  Case case_ = small();
  Random random_{2};
  Image image_ = make_image(case_.masks, case_.head_map, case_.listed, random_);
};

// How many were not refused as they should.
inline int refusals() {
  Refusals r;
  if (sparsebert_cpu_use("mmx") != SB_WRONG_CALL) r.failed++, puts("mmx is accepted");

  r.expect(SB_OK, "a good call", [](SbCall&, Image&) {});
  r.expect(SB_OK, "no batch", [](SbCall& c, Image&) { c.B = 0; });

  r.expect(SB_WRONG_VERSION, "another version", [](SbCall& c, Image&) { c.version++; });

  r.expect(SB_WRONG_PLAN, "no image", [](SbCall& c, Image&) { c.plan = nullptr; });
  r.expect(SB_WRONG_PLAN, "no bytes", [](SbCall& c, Image&) { c.plan_bytes = 0; });
  r.expect(SB_WRONG_PLAN, "a part of an image", [](SbCall& c, Image&) { c.plan_bytes -= 64; });
  r.expect(SB_WRONG_PLAN, "part of a header", [](SbCall& c, Image&) { c.plan_bytes = 71; });
  r.expect(SB_WRONG_PLAN, "magic", [](SbCall&, Image& i) { i.header()->magic ^= 1; });
  r.expect(SB_WRONG_PLAN, "image's version", [](SbCall&, Image& i) { i.header()->version++; });
  r.expect(SB_WRONG_PLAN, "image's bytes", [](SbCall&, Image& i) { i.header()->bytes += 64; });
  r.expect(SB_WRONG_PLAN, "more rows", [](SbCall&, Image& i) { i.header()->rows++; });
  r.expect(SB_WRONG_PLAN, "fewer columns", [](SbCall&, Image& i) { i.header()->columns--; });
  r.expect(SB_WRONG_PLAN, "N of a call", [](SbCall& c, Image&) { c.N--; });
  r.expect(SB_WRONG_PLAN, "M of a call", [](SbCall& c, Image&) { c.M--; });
  r.expect(SB_WRONG_PLAN, "fewer heads",
           [](SbCall& c, Image&) { c.H = c.H_kv = 2, c.grad_heads = 2; });
  r.expect(SB_WRONG_PLAN, "too many heads run", [](SbCall&, Image& i) { i.header()->heads = 5; });
  r.expect(SB_WRONG_PLAN, "negative heads", [](SbCall&, Image& i) { i.header()->heads = -1; });
  r.expect(SB_WRONG_PLAN, "three of four heads, unlisted",
           [](SbCall&, Image& i) { i.header()->listed = 0; });
  for (int64_t distinct : {-1, 0, 1, 1 << 20})
    r.expect(SB_WRONG_PLAN, "distinct heads",
             [=](SbCall&, Image& i) { i.header()->distinct = distinct; });
  for (int32_t head : {-1, 4})
    r.expect(SB_WRONG_PLAN, "a listed head",
             [=](SbCall&, Image& i) { i.numbers(i.header()->listed)[1] = head; });
  r.expect(SB_WRONG_PLAN, "a head twice", [=](SbCall&, Image& i) {
    i.numbers(i.header()->listed)[1] = i.numbers(i.header()->listed)[0];
  });
  for (int32_t head : {-1, 2})
    r.expect(SB_WRONG_PLAN, "a head's mask",
             [=](SbCall&, Image& i) { i.numbers(i.header()->head_map)[0] = head; });
  for (int64_t offset : {int64_t{-64}, int64_t{1} << 40}) {
    r.expect(SB_WRONG_PLAN, "offset of head_map",
             [=](SbCall&, Image& i) { i.header()->head_map = offset; });
    r.expect(SB_WRONG_PLAN, "offset of heads",
             [=](SbCall&, Image& i) { i.header()->listed = offset; });
    for (int member = 0; member < (int)(sizeof(sb::HeadHeader) / 8) - 1;
         member++)  // all but loads
      r.expect(SB_WRONG_PLAN, ("member " + std::to_string(member) + " of a head").c_str(),
               [=](SbCall&, Image& i) { ((int64_t*)i.head(1))[member] = offset; });
  }

  auto call = [&](const char* what, const std::function<void(SbCall&)>& change) {
    r.expect(SB_WRONG_CALL, what, [&](SbCall& c, Image&) { change(c); });
  };
  auto backward = [&](const char* what, const std::function<void(SbCall&)>& change) {
    r.expect(SB_WRONG_CALL, what, [&](SbCall& c, Image&) { change(c); }, true);
  };
  call("B", [](SbCall& c) { c.B = -1; });
  call("no heads", [](SbCall& c) { c.H = 0; });
  call("no key heads", [](SbCall& c) { c.H_kv = 0; });
  call("key heads that do not divide", [](SbCall& c) { c.H_kv = 3; });
  call("N", [](SbCall& c) { c.N = 0; });
  call("M", [](SbCall& c) { c.M = -3; });
  for (int64_t D : {0, -1, 257}) call("D", [=](SbCall& c) { c.D = D; });
  for (int64_t dtype : {-1, 3}) {
    call("dtype", [=](SbCall& c) { c.dtype = dtype; });
    call("grad_dtype", [=](SbCall& c) { c.grad_dtype = dtype; });
  }
  call("negative threads", [](SbCall& c) { c.threads = -1; });
  call("no threads", [](SbCall& c) { c.threads = 0; });
  call("no q", [](SbCall& c) { c.q.data = nullptr; });
  call("no k", [](SbCall& c) { c.k.data = nullptr; });
  call("no v", [](SbCall& c) { c.v.data = nullptr; });
  call("no o", [](SbCall& c) { c.o.data = nullptr; });
  backward("no lse", [](SbCall& c) { c.lse = nullptr; });
  r.expect(SB_FAILED, "threads that do not run", [](SbCall& c, Image&) {
    c.threads = 2, c.parallel_for = [](int64_t, int64_t, int64_t, SbRange, void*) { return 1; };
  });
  backward("grad_heads", [](SbCall& c) { c.grad_heads = 1; });
  backward("no grad_o", [](SbCall& c) { c.grad_o.data = nullptr; });
  backward("no dq", [](SbCall& c) { c.dq.data = nullptr; });
  backward("no dk", [](SbCall& c) { c.dk.data = nullptr; });
  backward("no dv", [](SbCall& c) { c.dv.data = nullptr; });
  return r.failed;
}

}  // namespace selftest
