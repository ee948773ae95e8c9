// The thread pool of pool.h: one 64-bit ticket hands out tasks, futex-like waits of std::atomic put idle threads to sleep.
// A worker that finds nothing announces itself in sleepers_ and looks again before it sleeps on wake_; the caller
// publishes tasks before it looks at sleepers_, so one of the two always sees the other.
#include "cpu/pool.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <system_error>

#ifdef __linux__
#include <sched.h>
#endif

#include "error.h"

namespace ld {
namespace {

constexpr int64_t kSpinNs = 100'000;  // longer than the serial gaps between the operations of a forward pass

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Calls done() until it is true or spin_ns have passed; says which.
template <class Done>
bool spin(int64_t spin_ns, Done done) {
  if (done()) return true;
  if (spin_ns == 0) return false;
  const auto end = std::chrono::steady_clock::now() + std::chrono::nanoseconds(spin_ns);
  do {
    for (int i = 0; i < 32; ++i) {
      pause();
      if (done()) return true;
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

#ifdef __linux__
// Two numbers of a small file such as "200000 100000"; "max" reads as -1. How many were there.
int read_numbers(const std::string& path, long long* out, int count) {
  FILE* file = fopen(path.c_str(), "r");
  if (!file) return 0;
  char buffer[128] = {};
  const size_t length = fread(buffer, 1, sizeof buffer - 1, file);
  fclose(file);
  buffer[length] = 0;
  int found = 0;
  char* rest = nullptr;
  for (char* word = strtok_r(buffer, " \n", &rest); word && found < count; word = strtok_r(nullptr, " \n", &rest)) {
    out[found++] = strcmp(word, "max") == 0 ? -1 : atoll(word);
  }
  return found;
}

// Processors worth of time that a control group grants, rounded up; 0 = no limit there.
int quota_at(const std::string& folder) {
  long long v[2];
  bool found = read_numbers(folder + "/cpu.max", v, 2) == 2;  // v2
  if (!found) {
    found = read_numbers(folder + "/cpu.cfs_quota_us", v, 1) == 1 &&
            read_numbers(folder + "/cpu.cfs_period_us", v + 1, 1) == 1;  // v1
  }
  if (!found || v[0] <= 0 || v[1] <= 0) return 0;
  return static_cast<int>(std::min<long long>((v[0] + v[1] - 1) / v[1], 1 << 16));
}

// The tightest quota among this process's control groups and their parents; 0 = none.
int cgroup_quota() {
  int quota = 0;
  auto take = [&](int limit) {
    if (limit > 0 && (quota == 0 || limit < quota)) quota = limit;
  };
  FILE* file = fopen("/proc/self/cgroup", "r");
  if (!file) return 0;
  char line[4096];
  while (fgets(line, sizeof line, file)) {  // "4:cpu,cpuacct:/group", version 2 "0::/group"
    line[strcspn(line, "\n")] = 0;
    char* controllers = strchr(line, ':');
    char* group = controllers ? strchr(controllers + 1, ':') : nullptr;
    if (!group) continue;
    *group++ = 0;
    ++controllers;
    const bool v2 = *controllers == 0;
    if (!v2 && (std::string(",") + controllers + ",").find(",cpu,") == std::string::npos) continue;
    const std::string mounts[] = {"/sys/fs/cgroup", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"};
    for (const std::string& mount : mounts) {
      if (v2 != (&mount == mounts)) continue;
      std::string path = group;
      while (true) {
        take(quota_at(mount + (path == "/" ? "" : path)));
        const size_t slash = path.find_last_of('/');
        if (slash == std::string::npos || path.size() <= 1) break;
        path.resize(std::max<size_t>(slash, 1));
      }
    }
  }
  fclose(file);
  return quota;
}
#endif

// Processors that the affinity mask allows.
int processors() {
#ifdef __linux__
  // A fixed set holds 1,024 processors; on larger machines the call fails and the total is taken.
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace

int available_threads() {
  int count = processors();
#ifdef __linux__
  const int quota = cgroup_quota();
  if (quota > 0) count = std::min(count, quota);
#endif
  return count;
}

Pool::Pool(int threads) {
  const int available = available_threads();
  threads_ = threads > 0 ? threads : available;
  spin_ns_ = threads_ <= available ? kSpinNs : 0;
  int started = 1;
  try {
    workers_ = std::make_unique<std::thread[]>(threads_ - 1);
    for (; started < threads_; ++started) {
      workers_[started - 1] = std::thread([this, started] { work(started); });
    }
  } catch (const std::exception&) {
    const int wanted = threads_;
    threads_ = started;
    stop();
    throw Error(LD_MEMORY, text("only %d of %d threads could be started; ask for fewer threads", started, wanted));
  }
}

Pool::~Pool() { stop(); }

void Pool::stop() {
  ending_.store(true);
  wake_.fetch_add(1);
  wake_.notify_all();
  for (int i = 0; i + 1 < threads_; ++i) workers_[i].join();
}

void Pool::parallel(int n_tasks, TaskRef callable) {
  if (threads_ == 1 || n_tasks <= 1) {
    for (int task = 0; task < n_tasks; ++task) callable(task, 0);
    return;
  }
  callable_ = &callable;
  n_tasks_ = n_tasks;
  unfinished_.store(n_tasks, std::memory_order_relaxed);
  const uint64_t call = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
  ticket_.store(call << 32 | static_cast<uint32_t>(n_tasks));
  if (sleepers_.load() > 0) {
    wake_.fetch_add(1);
    wake_.notify_all();
  }
  while (run_one(0)) {
  }
  auto finished = [this] { return unfinished_.load(std::memory_order_acquire) == 0; };
  if (spin(spin_ns_, finished)) return;
  // Only the worker that finishes last looks at caller_sleeps_, after it has counted itself down.
  caller_sleeps_.store(true);
  for (int left = unfinished_.load(); left != 0; left = unfinished_.load()) unfinished_.wait(left);
  caller_sleeps_.store(false, std::memory_order_relaxed);
}

bool Pool::run_one(int thread) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  do {
    if (static_cast<uint32_t>(ticket) == 0) return false;
  } while (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel, std::memory_order_acquire));
  // The call cannot end before this task is counted, so its description stays as it is.
  (*callable_)(n_tasks_ - static_cast<int>(static_cast<uint32_t>(ticket)), thread);
  if (unfinished_.fetch_sub(1) == 1 && caller_sleeps_.load()) unfinished_.notify_all();
  return true;
}

bool Pool::wait_for_tasks() {
  auto ready = [this] {
    return static_cast<uint32_t>(ticket_.load(std::memory_order_relaxed)) != 0 ||
           ending_.load(std::memory_order_relaxed);
  };
  if (!spin(spin_ns_, ready)) {
    const uint32_t seen = wake_.load();
    sleepers_.fetch_add(1);
    if (static_cast<uint32_t>(ticket_.load()) == 0 && !ending_.load()) wake_.wait(seen);
    sleepers_.fetch_sub(1);
  }
  return !ending_.load();
}

void Pool::work(int thread) {
  while (wait_for_tasks()) {
    while (run_one(thread)) {
    }
  }
}

}  // namespace ld
