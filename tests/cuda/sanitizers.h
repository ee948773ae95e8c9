// What the emulator tells AddressSanitizer and ThreadSanitizer: which stack runs, which memory is nobody's, and what orders
// two threads of a block (LD_EMULATED_RACES: the emulator itself is not instrumented then). Without them every function
// here does nothing.
#pragma once

#include <cstddef>
#include <cstring>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#elif defined(LD_EMULATED_RACES)
#include <sanitizer/tsan_interface.h>
extern "C" {
void __tsan_ignore_thread_begin();
void __tsan_ignore_thread_end();
}
#endif

namespace ld::cuda {

#if defined(__SANITIZE_ADDRESS__)

// A stack, and while it does not run the sanitizer's record of it.
struct Known {
  const void* bottom = nullptr;
  size_t size = 0;
  void* record = nullptr;
};
// Right before a switch, and right after it on the other stack. A thread's own stack is learnt when it is left.
inline Known*& left() {
  static Known* value;
  return value;
}
inline void leave_for(const Known& to, Known& from) {
  left() = &from;
  __sanitizer_start_switch_fiber(&from.record, to.bottom, to.size);
}
inline void arrived_at(Known& here) { __sanitizer_finish_switch_fiber(here.record, &left()->bottom, &left()->size); }
inline void forbid(const void* at, size_t bytes) { __asan_poison_memory_region(at, bytes); }
inline void allow(const void* at, size_t bytes) { __asan_unpoison_memory_region(at, bytes); }
// memset for an allocation whose owner forbade the gaps between its parts.
__attribute__((no_sanitize_address)) inline void fill(void* at, int value, size_t bytes) {
  for (volatile char *to = static_cast<char*>(at), *end = to + bytes; to < end; ++to) *to = static_cast<char>(value);
}

#else

inline void forbid(const void*, size_t) {}
inline void allow(const void*, size_t) {}
inline void fill(void* at, int value, size_t bytes) { memset(at, value, bytes); }

#endif

#if defined(LD_EMULATED_RACES)

// Every thread of a block is one to the sanitizer, which sees no order between them but happens_before(x) and the
// happens_after(x) that follow it.
struct Known {
  Known() : fiber(__tsan_get_current_fiber()) {}
  Known(const void*, size_t) : fiber(__tsan_create_fiber(0)) {}
  void* fiber;
};
inline void leave_for(const Known& to, Known&) { __tsan_switch_to_fiber(to.fiber, __tsan_switch_to_fiber_no_sync); }
inline void arrived_at(Known&) {}
inline void happens_before(void* at) { __tsan_release(at); }
inline void happens_after(void* at) { __tsan_acquire(at); }
// While it lives, accesses are the emulator's own.
struct Unseen {
  Unseen() { __tsan_ignore_thread_begin(); }
  ~Unseen() { __tsan_ignore_thread_end(); }
};

#else

inline void happens_before(void*) {}
inline void happens_after(void*) {}
struct Unseen {
  Unseen() {}
};

#endif

#if !defined(__SANITIZE_ADDRESS__) && !defined(LD_EMULATED_RACES)

struct Known {
  Known() = default;
  Known(const void*, size_t) {}
};
inline void leave_for(const Known&, Known&) {}
inline void arrived_at(Known&) {}

#endif

}  // namespace ld::cuda
