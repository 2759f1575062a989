// As torch's `torch_parallel_for`, on threads of its own that are started and joined for each
// call: a sanitizer knows what that means for what they share.
#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

extern "C" int32_t joined_threads(int64_t begin, int64_t end, int64_t,
                                  void (*f)(int64_t begin, int64_t end, void* context),
                                  void* context) {
  std::vector<std::thread> threads;
  const int64_t count = end - begin, parts = std::min<int64_t>(count, 4);
  for (int64_t i = 0; i < parts; i++)
    threads.emplace_back(f, begin + count * i / parts, begin + count * (i + 1) / parts, context);
  for (std::thread& thread : threads) thread.join();
  return 0;
}
