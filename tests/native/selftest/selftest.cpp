// Runs the CPU kernels through their C interface on random calls, and compares with an oracle.
//
//   selftest [--isa NAME] [--cases N] [--seed S] [--only CASE]
//   selftest --list
//
// Every case is run forward and backward with 1 to 5 threads, with k and v in place and packed,
// and must give the same bits; these must be right, and nothing else may have been written.
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "oracle.h"
#include "refusals.h"

namespace selftest {
namespace {

// How the parts of a parallel loop run: on threads of their own, or one after another.
struct Pool {
  int64_t threads = 1;
  bool on_threads = true;
} pool;

int32_t parallel_for(int64_t begin, int64_t end, int64_t, SbRange f, void* context) {
  const int64_t parts = std::min(pool.threads, end - begin);
  std::vector<std::thread> running;
  for (int64_t n = parts - 1; n >= 0; n--) {
    const int64_t from = begin + (end - begin) * n / parts;
    const int64_t to = begin + (end - begin) * (n + 1) / parts;
    if (pool.on_threads)
      running.emplace_back(f, from, to, context);
    else
      f(from, to, context);
  }
  for (std::thread& thread : running) thread.join();
  return 0;
}

// The bytes of all results of a case.
struct Results {
  std::vector<char> o, lse, dq, dk, dv;
  bool operator==(const Results& x) const {
    return o == x.o && lse == x.lse && dq == x.dq && dk == x.dk && dv == x.dv;
  }
};

class Runner {
 public:
  Runner(Case& c, Random& random) : c_(c), random_(random) {}

  // "" or what went wrong
  std::string run(const Image& image, int64_t threads, bool on_threads) {
    pool = {random_.chance(0.7) ? threads : random_.between(1, 5), on_threads};
    SbCall call = make_call(c_, image);
    call.threads = threads, call.parallel_for = parallel_for;
    for (Tensor* x : {&c_.o, &c_.dq, &c_.dk, &c_.dv}) x->forget();
    memset(c_.lse.data(), 0xff, c_.lse.size() * sizeof(float));
    for (bool backward : {false, true}) {
      const int64_t code = with_scratch(call, backward);
      if (code) return "refused with " + std::to_string(code);
    }
    if (!c_.o.is_intact(c_.written(c_.H)) || !c_.dq.is_intact(c_.written(c_.H)) ||
        !c_.dk.is_intact(c_.written(c_.grad_heads)) || !c_.dv.is_intact(c_.written(c_.grad_heads)))
      return "wrote beside its results";
    return "";
  }
  // o alone, where nobody asks for LSE; "" if it is that of the results
  std::string run_without_lse(const Image& image, const Results& results) {
    SbCall call = make_call(c_, image);
    call.threads = 1, call.lse = nullptr;
    c_.o.forget();
    if (const int64_t code = with_scratch(call, false))
      return "refused with " + std::to_string(code);
    return c_.o.bytes() == results.o ? "" : "other bits";
  }
  Results results() const {
    const char* lse = (const char*)c_.lse.data();
    return {c_.o.bytes(),
            {lse, lse + c_.lse.size() * sizeof(float)},
            c_.dq.bytes(),
            c_.dk.bytes(),
            c_.dv.bytes()};
  }

 private:
  // In a block of just as many bytes as the call asks for, full of NaN.
  int64_t with_scratch(SbCall& call, bool backward) {
    const int64_t bytes = sparsebert_cpu_scratch(&call, backward);
    if (bytes < 0) return bytes;
    const int64_t offset = random_.below(64);
    std::unique_ptr<char[]> scratch(new char[(size_t)(bytes + offset)]);
    memset(scratch.get(), 0xff, (size_t)(bytes + offset));
    call.scratch = scratch.get() + offset;
    auto pass = backward ? sparsebert_cpu_backward : sparsebert_cpu_forward;
    call.scratch_bytes = bytes - 1;
    if (pass(&call) != -bytes) return -1;
    call.scratch_bytes = bytes;
    return pass(&call);
  }

  Case& c_;
  Random& random_;
};

double worst = 0;  // error of right fp32 results of which at least two digits must be, in bounds

// "" or the first element that is wrong
std::string compare(const char* name, const Expected& expected, const std::vector<char>& written,
                    int64_t B, int64_t dtype,
                    const std::function<double(int64_t, int64_t, int64_t, int64_t)>& got) {
  const Format format = format_of(dtype);
  for (int64_t b = 0; b < B; b++)
    for (int64_t h = 0; h < expected.H; h++)
      for (int64_t n = 0; n < expected.N && written[(size_t)h]; n++)
        for (int64_t d = 0; d < expected.D; d++) {
          const size_t at = expected.row(b, h, n) + (size_t)d;
          const double x = expected.value[at], bound = expected.bound[at], y = got(b, h, n, d);
          if (x == y || bound == INF) continue;
          bool right;
          if (!std::isfinite(x) && x != -INF) {
            right = !std::isfinite(y);
          } else if (std::isinf(y)) {
            right = std::abs(x) + bound > format.most;  // beyond the dtype's range
          } else {
            right = std::abs(x - y) <= bound;
            const bool tight = dtype == SB_FLOAT32 && right && bound < 0.01 * std::abs(x);
            if (tight) worst = std::max(worst, std::abs(x - y) / bound);
          }
          if (right) continue;
          char text[200];
          snprintf(text, sizeof text, "%s[%d, %d, %d, %d] is %.9g, not %.9g +- %.3g", name, (int)b,
                   (int)h, (int)n, (int)d, y, x, bound);
          return text;
        }
  return "";
}

std::string check(Case& c, Random& random, bool native_bf16) {
  Runner runner(c, random);
  const Image image = make_image(c.masks, c.head_map, c.listed, random);
  std::string wrong = runner.run(image, 1, false);
  if (!wrong.empty()) return wrong;
  const Results results = runner.results();

  const double p_unit = native_bf16 && c.dtype == SB_BFLOAT16 ? 0x1p-8 : 0;
  const Truth truth = compute_truth(c, p_unit);
  const std::vector<char> heads = c.written(c.H), grad_heads = c.written(c.grad_heads);
  auto element = [](const Tensor& x) {
    return [&x](int64_t b, int64_t h, int64_t n, int64_t d) { return x.get(b, h, n, d); };
  };
  auto lse = [&](int64_t b, int64_t h, int64_t n, int64_t) {
    return (double)c.lse[(size_t)((b * c.H + h) * c.N + n)];
  };
  wrong = compare("o", truth.o, heads, c.B, c.dtype, element(c.o));
  if (wrong.empty()) wrong = compare("lse", truth.lse, heads, c.B, SB_FLOAT32, lse);
  if (wrong.empty()) wrong = compare("dq", truth.dq, heads, c.B, c.dtype, element(c.dq));
  if (wrong.empty()) wrong = compare("dk", truth.dk, grad_heads, c.B, c.grad_dtype, element(c.dk));
  if (wrong.empty()) wrong = compare("dv", truth.dv, grad_heads, c.B, c.grad_dtype, element(c.dv));
  if (!wrong.empty()) return wrong;

  for (int64_t threads = 1; threads <= 5; threads++)
    for (bool packed : {false, true}) {
      if (threads > 1 && threads < 5 && random.chance(0.5)) continue;
      Image same = image;
      for (int64_t u = 0; u < same.header()->distinct; u++)
        same.head(u)->loads = packed ? int64_t{1} << 40 : 0;
      wrong = runner.run(same, threads, random.chance(0.7));
      const std::string how =
          std::to_string(threads) + " threads, " + (packed ? "packed" : "in place");
      if (!wrong.empty()) return how + ": " + wrong;
      if (!(runner.results() == results)) return how + ": other bits";
    }
  wrong = runner.run_without_lse(image, results);
  return wrong.empty() ? "" : "without LSE: " + wrong;
}

}  // namespace
}  // namespace selftest

int main(int argc, char** argv) {
  using namespace selftest;
  std::string isa;
  long cases = 300, only = -1;
  long seed = 0;
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i], value = i + 1 < argc ? argv[i + 1] : "";
    if (name == "--list") return puts(sparsebert_cpu_isas()), 0;
    char* end = nullptr;
    const long number = strtol(value.c_str(), &end, 10);
    if (name == "--isa")
      isa = value;
    else if (value.empty() || *end || number < 0 ||
             !(name == "--cases" || name == "--seed" || name == "--only"))
      return fprintf(stderr, "selftest: what is %s %s?\n", argv[i], value.c_str()), 2;
    else
      (name == "--cases" ? cases : name == "--only" ? only : seed) = number;
  }
  const std::string able = sparsebert_cpu_isas();
  if (isa.empty()) isa = able.substr(0, able.find(' '));
  if (sparsebert_cpu_use(isa.c_str())) {
    fprintf(stderr, "selftest: --isa must be one of: %s; got %s\n", able.c_str(), isa.c_str());
    return 2;
  }
  int failed = refusals();
  const bool native_bf16 = std::string(sparsebert_cpu_features()) == "bf16";
  const long first = only < 0 ? 0 : only, last = only < 0 ? cases : only + 1;
  for (long n = first; n < last && failed < 20; n++) {
    Random random((uint64_t)seed * 1000003 + (uint64_t)n);
    Case c = make_case(random);
    const std::string wrong = check(c, random, native_bf16);
    if (wrong.empty()) continue;
    failed++;
    printf("%s: seed %ld case %ld: %s: %s\n", isa.c_str(), seed, n, c.about.c_str(),
           wrong.c_str());
  }
  printf("%s: %ld cases, %d wrong; fp32 errors up to %.2f of their bounds\n", isa.c_str(),
         last - first, failed, worst);
  return failed != 0;
}
