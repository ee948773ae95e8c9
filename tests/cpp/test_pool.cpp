// The thread pool: every task runs exactly once, results are visible, late sleepers are woken, more threads than
// processors make progress. Run under the thread sanitizer too.
#include <chrono>
#include <thread>
#include <vector>

#include "cpu/pool.h"
#include "test.h"

using ld::Pool;

namespace {

// Runs `calls` calls of varying size and checks that each task ran once and saw the call before it.
void hammer(int threads, int calls, int pause_every, int pause_us) {
  Pool pool(threads);
  CHECK_EQ(pool.threads(), threads);
  std::vector<int> counts(97, 0);
  int wrong = 0;
  for (int call = 0; call < calls; ++call) {
    const int n = call % 97 + 1;
    std::vector<int> thread_of(n, -1);
    pool.parallel(n, [&](int task, int thread) {
      thread_of[task] = thread;
      ++counts[task];
    });
    for (int thread : thread_of) wrong += thread < 0 || thread >= threads;
    if (pause_every && call % pause_every == 0) std::this_thread::sleep_for(std::chrono::microseconds(pause_us));
  }
  CHECK_EQ(wrong, 0);
  for (int task = 0; task < 97; ++task) {
    int expected = 0;
    for (int call = 0; call < calls; ++call) expected += call % 97 >= task;
    CHECK_EQ(counts[task], expected);
  }
}

}  // namespace

TEST(one_thread_runs_tasks_in_order) {
  Pool pool(1);
  std::vector<int> order;
  pool.parallel(5, [&](int task, int thread) {
    order.push_back(task);
    CHECK_EQ(thread, 0);
  });
  CHECK(order == std::vector<int>({0, 1, 2, 3, 4}));
}

TEST(every_task_runs_once) {
  for (int threads : {1, 2, 3, 4, 8, 32}) hammer(threads, 2000, 0, 0);
}

TEST(sleeping_workers_wake) {
  hammer(2, 200, 2, 300);  // longer than the spin: workers and caller sleep
  hammer(4, 200, 3, 50);
}

TEST(no_tasks_is_nothing) {
  Pool pool(2);
  pool.parallel(0, [&](int, int) { CHECK(false); });
}

TEST(slow_last_task_is_waited_for) {
  Pool pool(2);
  for (int i = 0; i < 20; ++i) {
    int done = 0, also = 0;
    pool.parallel(2, [&](int task, int) {
      std::this_thread::sleep_for(std::chrono::microseconds(task ? 500 : 1));
      (task ? done : also) = 1;
    });
    CHECK_EQ(done + also, 2);
  }
}

TEST(threads_share_the_work) {
  Pool pool(2);
  bool both = false;
  for (int i = 0; i < 50 && !both; ++i) {
    int used[2] = {};
    pool.parallel(8, [&](int, int thread) {
      ++used[thread];
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    });
    both = used[0] > 0 && used[1] > 0;
  }
  CHECK(both);
}

TEST(many_pools_come_and_go) {
  for (int i = 0; i < 200; ++i) {
    Pool pool(1 + i % 5);
    int sum[16] = {};
    if (i % 2) pool.parallel(16, [&](int task, int) { sum[task] = task; });
    if (i % 2) CHECK_EQ(sum[15], 15);
  }
}

TEST(available_is_at_least_one) { CHECK(ld::available_threads() >= 1); }
