// Bursts on every thread of a pool, the best one wins: whatever interrupts a burst only makes it slower. Each thread counts
// the processor time of its own part, so that neither waking late nor other programs' turns count.
#include "cpu/peak.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>
#include <numeric>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/pool.h"
#include "error.h"

namespace ld {
namespace {

constexpr size_t kReadBytes = size_t{512} << 20;  // far more than any cache is expected to hold
constexpr double kBurstSeconds = 1e-3;            // long against waking a thread, short against a time slice

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double processor_time() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return time.tv_sec + time.tv_nsec * 1e-9;
}

// The highest rate, all threads together, of run(task), which does `units` of work; repeated for `seconds`.
template <class Run>
double best_rate(Pool& pool, double seconds, double units, Run run) {
  double best = 0;
  std::vector<double> rates(pool.threads());
  const double end = now() + seconds;
  do {
    pool.parallel(pool.threads(), [&](int task, int) {
      const double begin = processor_time();
      run(task);
      rates[task] = units / (processor_time() - begin);
    });
    best = std::max(best, std::accumulate(rates.begin(), rates.end(), 0.0));
  } while (now() < end);
  return best / 1e9;
}

double burst_rate(Pool& pool, double seconds, uint64_t (*burst)(const void*, int), int operations) {
  float source[kPeakSource / sizeof(float)];
  for (size_t i = 0; i < kPeakSource / sizeof(float); ++i) source[i] = 0.5f + i / 1024.0f;
  std::atomic<uint64_t> sink{0};
  auto seconds_of = [&](int rounds) {
    const double begin = processor_time();
    sink = burst(source, rounds);
    return processor_time() - begin;
  };
  int rounds = 1024;
  while (std::min({seconds_of(rounds), seconds_of(rounds), seconds_of(rounds)}) < kBurstSeconds / 2) rounds *= 2;
  return best_rate(pool, seconds, static_cast<double>(operations) * rounds, [&](int) { sink = burst(source, rounds); });
}

}  // namespace

double int8_peak(const KernelRow& row, Pool& pool, double seconds) {
  return burst_rate(pool, seconds, row.peak->int8, row.peak->int8_operations);
}

double f32_peak(const KernelRow& row, Pool& pool, double seconds) {
  return burst_rate(pool, seconds, row.peak->f32, row.peak->f32_operations);
}

double memory_peak(const KernelRow& row, Pool& pool, double seconds) {
  const std::unique_ptr<void, decltype(&free)> memory(aligned_alloc(64, kReadBytes), free);
  if (!memory) throw Error(LD_MEMORY, text("no memory for the %zu bytes that measuring reads takes", kReadBytes));
  const int threads = pool.threads();
  const size_t share = kReadBytes / threads / 256 * 256;
  auto part = [&](int task) { return static_cast<char*>(memory.get()) + task * share; };
  pool.parallel(threads, [&](int task, int) { memset(part(task), 1, share); });
  std::atomic<uint64_t> sink{0};
  return best_rate(pool, seconds, static_cast<double>(share),
                   [&](int task) { sink = row.peak->read(part(task), share); });
}

}  // namespace ld
