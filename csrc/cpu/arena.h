// Lays out the memory of a session: one allocation cut into 64-byte aligned parts. The same layout code runs twice, first
// over no memory to learn the size (plan), then over the allocation (create), so that the two can never disagree. Between
// parts AddressSanitizer finds a line that is nobody's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#include "error.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace ld {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kGap = 64;
inline void forbid_access(void* at, size_t bytes) { __asan_poison_memory_region(at, bytes); }
inline void allow_access(void* at, size_t bytes) { __asan_unpoison_memory_region(at, bytes); }
#else
constexpr size_t kGap = 0;
inline void forbid_access(void*, size_t) {}
inline void allow_access(void*, size_t) {}
#endif

class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<uint8_t*>(base)) {}

  // The product of `counts` values of T; null while measuring. Throws Error(LD_MEMORY) where that many bytes cannot be
  // counted.
  template <class T, class... Counts>
  T* take(Counts... counts) {
    size_t bytes = sizeof(T);
    bool fits = true;
    ((fits &= !__builtin_mul_overflow(bytes, static_cast<size_t>(counts), &bytes)), ...);
    const size_t at = used_;
    if (!fits || bytes > SIZE_MAX / 2 - at) {
      throw Error(LD_MEMORY, "the session's state does not fit any memory; ask for fewer slots, positions or rows");
    }
    used_ += (bytes + kLine - 1) / kLine * kLine + kGap;
    if (base_ == nullptr) return nullptr;
    forbid_access(base_ + at + bytes, used_ - at - bytes);
    return reinterpret_cast<T*>(base_ + at);
  }
  size_t used() const { return used_; }

 private:
  static constexpr size_t kLine = 64;
  uint8_t* base_;
  size_t used_ = 0;
};

struct FreeAligned {
  void operator()(void* memory) const { ::operator delete (memory, std::align_val_t{64}); }
};

// What take_scratch gave, until it is let go of.
using Scratch = std::unique_ptr<void, FreeAligned>;

// Scratch for what `lay_out`, a function of where it begins, puts into it; null there measures.
template <class LayOut>
Scratch take_scratch(const LayOut& lay_out) {
  Scratch memory(::operator new (lay_out(nullptr), std::align_val_t{64}));
  lay_out(memory.get());
  return memory;
}

}  // namespace ld
