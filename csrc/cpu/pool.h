// A small thread pool: the caller and its workers share the tasks of one call, handed out one by one. Workers spin for
// some microseconds after a call, because the next one usually follows at once, and then sleep. One call at a time, from
// one thread at a time; a task may not start another call. Nothing is allocated after construction. Tasks do not throw.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>

namespace ld {

// A reference to a callable (task, thread): no ownership, no allocation. The callable outlives the call it is passed to.
class TaskRef {
 public:
  template <class F>
  requires(!std::is_same_v<std::remove_cvref_t<F>, TaskRef>) TaskRef(F&& callable)  // NOLINT: lambdas convert
      : object_(const_cast<void*>(static_cast<const void*>(&callable))), call_([](void* object, int task, int thread) {
          (*static_cast<std::remove_reference_t<F>*>(object))(task, thread);
        }) {}
  void operator()(int task, int thread) const { call_(object_, task, thread); }

 private:
  void* object_;
  void (*call_)(void*, int, int);
};

// Processors that this process may use: its affinity mask, limited by the quota of its control group (v1 and v2).
int available_threads();

class Pool {
 public:
  // 0 = available_threads(). 1 = no workers. Throws Error(LD_MEMORY) where a thread cannot be started.
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return threads_; }

  // Runs callable(task, thread) for every task in [0, n_tasks), 0 <= thread < threads(), the caller being thread 0.
  // Returns when all are done; what they wrote is visible then.
  void parallel(int n_tasks, TaskRef callable);

 private:
  void work(int thread);
  bool run_one(int thread);  // takes and runs a task; false where none is left
  bool wait_for_tasks();     // spins, then sleeps; false at the end of the pool
  void stop();               // ends and joins the workers

  int threads_;
  int64_t spin_ns_;  // before sleeping; 0 where threads exceed processors
  const TaskRef* callable_ = nullptr;
  int n_tasks_ = 0;
  // High half: the call's number. Low half: tasks not yet taken. One word, so that a worker that wakes late can never
  // take a task of a call that it did not see.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int> unfinished_{0};
  alignas(64) std::atomic<uint32_t> wake_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> caller_sleeps_{false}, ending_{false};
  std::unique_ptr<std::thread[]> workers_;
};

}  // namespace ld
