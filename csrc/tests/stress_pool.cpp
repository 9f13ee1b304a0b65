// The thread pool, and the kernels that run on it, under ThreadSanitizer: `make tsan`.
//
// Races of the pool show when a job starts while a worker of the job before is still on its way out
// or falls asleep, so that jobs here follow each other at gaps from none to longer than the spin.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "base/runtime.h"
#include "base/thread_pool.h"
#include "ops/attention.h"
#include "ops/expert_ffn.h"
#include "ops/hand_over.h"
#include "ops/host_experts.h"
#include "ops/linear.h"

namespace {

using hm::Matrix;

void require(bool holds, const char* claim) {
  if (holds) return;
  std::fprintf(stderr, "FAILED: %s\n", claim);
  std::exit(1);
}

// Threads per node, free to run anywhere.
hm::ThreadPlan plan_of(const std::vector<int>& nodes) {
  hm::ThreadPlan plan;
  for (const int threads : nodes) plan.emplace_back(threads);
  return plan;
}

const std::vector<hm::ThreadPlan> kPlans = {plan_of({1}),    plan_of({2}),    plan_of({4}),
                                            plan_of({1, 1}), plan_of({2, 1}), plan_of({1, 0, 2}),
                                            plan_of({3, 3})};

// Each chunk runs exactly once, with a worker number that no other chunk has meanwhile, and what it
// wrote (not atomic: the sanitizer looks) is there when run returns.
void chunks_run_once(const hm::ThreadPlan& plan, int jobs) {
  hm::ThreadPool pool(plan);
  std::mt19937 random(1);
  std::vector<int> count(500);
  std::vector<int64_t> of_worker(pool.num_workers());
  for (int job = 0; job < jobs; ++job) {
    const int64_t chunks = static_cast<int64_t>(random() % count.size());
    const auto mark = [&](int64_t chunk, int worker) {
      ++count[chunk];
      ++of_worker[worker];
    };
    if (job % 2 == 0) {
      pool.run(chunks, mark);
    } else {
      std::vector<int64_t> ends(pool.num_nodes());
      for (int n = 0; n < pool.num_nodes(); ++n) ends[n] = chunks * (n + 1) / pool.num_nodes();
      pool.run_on_nodes(ends, mark);
    }
    for (int64_t i = 0; i < static_cast<int64_t>(count.size()); ++i) {
      require(count[i] == (i < chunks ? 1 : 0), "a chunk runs exactly once");
    }
    std::fill(count.begin(), count.end(), 0);
    if (job % 50 == 0) usleep(random() % 300);  // workers sleep after 80 us
  }
}

// Random weights of one expert layer, with a scale that keeps numbers small.
class Layer {
 public:
  static constexpr int64_t kExperts = 4, kHidden = 512, kInter = 256, kTopK = 2, kTokens = 3;

  Layer() : gate_(weights()), up_(weights()), down_(weights()), x_(floats(kTokens * kHidden)) {}

  std::vector<float> experts() const {
    const int32_t ids[] = {0, 3, 1, 3, 2, -1};
    const float shares[] = {0.5f, 0.5f, 0.25f, 0.75f, 1.0f, 0.0f};
    std::vector<float> out(kTokens * kHidden);
    const Matrix gate = matrix(gate_, kInter, kHidden), up = matrix(up_, kInter, kHidden);
    const Matrix down = matrix(down_, kHidden, kInter);
    hm::expert_ffn({.x = x_.data(),
                    .ids = ids,
                    .weights = shares,
                    .num_tokens = kTokens,
                    .top_k = kTopK,
                    .gate = gate,
                    .up = up,
                    .down = down,
                    .base = nullptr,
                    .out = out.data()});
    return out;
  }

  std::vector<float> product() const {
    std::vector<float> out(kExperts * kTokens * kInter);
    hm::linear({x_.data(), 0, kHidden}, kTokens, matrix(gate_, kInter, kHidden),
               {out.data(), kTokens * kInter, kInter});
    return out;
  }

  std::vector<float> attention() const {
    constexpr int64_t heads = 4, latent = 64, rope = 32, positions = 600;
    constexpr int64_t pages = (positions + hm::kPageTokens - 1) / hm::kPageTokens;
    static const std::vector<float> queries = floats(heads * kTokens * latent);
    static const std::vector<float> rotated = floats(kTokens * heads * rope);
    static std::vector<float> kv = floats(pages * hm::kPageTokens * (latent + rope));
    static const std::vector<int32_t> table = [] {
      std::vector<int32_t> numbers(pages);
      for (int64_t i = 0; i < pages; ++i) numbers[i] = static_cast<int32_t>(pages - 1 - i);
      return numbers;
    }();
    const hm::SequenceSpan span{kTokens, positions - kTokens, 0};
    std::vector<float> out(queries.size());
    hm::latent_attention({.q_latent = queries.data(),
                          .q_rope = rotated.data(),
                          .token_stride = heads * rope,
                          .head_stride = rope,
                          .num_tokens = kTokens,
                          .num_heads = heads,
                          .latent_dim = latent,
                          .rope_dim = rope,
                          .scale = 0.1f,
                          .out = out.data()},
                         {reinterpret_cast<uint8_t*>(kv.data()), hm::kKvF32, pages, latent + rope},
                         {&span, 1, table.data(), pages});
    return out;
  }

  // The experts as the driver's thread computes them, with one of them on the GPU, and what
  // happens to an error there.
  std::vector<float> hosted() const {
    int32_t ids[] = {0, 3, 1, 3, 2, -1};
    std::vector<float> out(kTokens * kHidden);
    hm::HostExpertCall call(host_args(ids, out.data()));
    ids[2] = kExperts;
    std::thread([&] { call.run(); }).join();
    require(call.take_error().has_value(), "a wrong id is an error");
    ids[2] = 1;
    std::thread([&] { call.run(); }).join();
    require(!call.take_error().has_value(), "an error is taken once");
    return out;
  }

  // The same, handed over three times by a thread in a GPU's place. Nothing is atomic but the
  // counters, which wrap.
  std::vector<float> handed_over() const {
    int32_t ids[6] = {};
    std::vector<float> out(kTokens * kHidden), result;
    hm::HostExpertCall call(host_args(ids, out.data()));
    uint32_t sent = 0xFFFFFFFE, done = sent;
    std::thread gpu([&] {
      for (uint32_t number = sent + 1, left = 3; left > 0; ++number, --left) {
        std::fill(out.begin(), out.end(), 0.0f);
        std::memcpy(ids, kIds, sizeof ids);
        std::atomic_ref(sent).store(number, std::memory_order_release);
        while (std::atomic_ref(done).load(std::memory_order_acquire) != number) usleep(1);
        result = out;
        std::fill(ids, ids + 6, -1);
      }
    });
    hm::HostCall* const calls[] = {&call, &call, &call};
    hm::HandOver(&sent, &done).serve(calls, [] { return false; });
    gpu.join();
    return result;
  }

 private:
  static constexpr int32_t kIds[] = {0, 3, 1, 3, 2, -1};

  hm::HostExpertArgs host_args(const int32_t* ids, float* out) const {
    static const float shares[] = {0.5f, 0.5f, 0.25f, 0.75f, 1.0f, 0.0f};
    static const int32_t slots[] = {-1, 0, -1, -1};
    return {.memory = {.x = x_.data(),
                       .ids = ids,
                       .weights = shares,
                       .out = out,
                       .max_tokens = kTokens,
                       .top_k = kTopK,
                       .slot_of = slots},
            .gate = matrix(gate_, kInter, kHidden),
            .up = matrix(up_, kInter, kHidden),
            .down = matrix(down_, kHidden, kInter)};
  }

  static std::vector<uint8_t> weights() {
    static std::mt19937 random(2);
    std::vector<uint8_t> bytes(kExperts * kHidden * kInter / 32 * sizeof(hm::BlockQ8_0));
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    const uint16_t scale = 0x1400;  // 2^-10 as binary16
    for (std::size_t at = 0; at < bytes.size(); at += sizeof(hm::BlockQ8_0)) {
      std::memcpy(&bytes[at], &scale, sizeof scale);
    }
    return bytes;
  }

  static std::vector<float> floats(int64_t count) {
    static std::mt19937 random(3);
    std::vector<float> values(count);
    for (float& value : values) value = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
    return values;
  }

  static Matrix matrix(const std::vector<uint8_t>& bytes, int64_t rows, int64_t cols) {
    return Matrix(bytes.data(), static_cast<int64_t>(bytes.size()), hm::kQ8_0, kExperts, rows,
                  cols);
  }

  const std::vector<uint8_t> gate_, up_, down_;
  const std::vector<float> x_;
};

// Several callers at once, and one that changes the threads under them: always the same bits.
void callers_get_the_same_bits(int rounds) {
  const Layer layer;
  hm::set_threads(plan_of({1}));
  const auto experts = layer.experts(), product = layer.product(), attention = layer.attention();
  const auto hosted = layer.hosted();
  std::atomic<bool> done{false};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 2; ++caller) {
    callers.emplace_back([&] {
      for (int i = 0; i < rounds; ++i) {
        require(layer.experts() == experts, "expert_ffn gives the bits of one thread");
        require(layer.product() == product, "linear gives the bits of one thread");
        require(layer.attention() == attention, "attention gives the bits of one thread");
        require(layer.hosted() == hosted, "a host call gives the bits of one thread");
        require(layer.handed_over() == hosted, "a hand-over gives the bits of one thread");
      }
    });
  }
  std::thread resizer([&] {
    for (std::size_t i = 0; !done.load(); ++i) {
      hm::set_threads(kPlans[i % kPlans.size()]);
      usleep(3000);
    }
  });
  for (std::thread& caller : callers) caller.join();
  done.store(true);
  resizer.join();
}

}  // namespace

int main() {
  for (const hm::ThreadPlan& plan : kPlans) chunks_run_once(plan, 2000);
  callers_get_the_same_bits(100);
  std::puts("stress_pool: every chunk once, the same bits, no race seen");
  return 0;
}
