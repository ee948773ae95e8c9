// Counts the allocations of a test program, for steps that must make none. Included once by the file with the tests; not
// here: allocations that bypass operator new.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

static std::atomic<int64_t> allocations{0};

// Every allocation of this program is counted: a step must make none. Not inline: GCC would take free() for a mismatch.
[[gnu::noinline]] void* operator new(size_t bytes) {
  ++allocations;
  if (void* memory = malloc(bytes)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(size_t bytes, std::align_val_t align) {
  ++allocations;
  const size_t unit = static_cast<size_t>(align);
  if (void* memory = aligned_alloc(unit, (bytes + unit - 1) / unit * unit)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  ++allocations;
  return malloc(bytes);
}
[[gnu::noinline]] void* operator new(size_t bytes, std::align_val_t align, const std::nothrow_t&) noexcept {
  ++allocations;
  const size_t unit = static_cast<size_t>(align);
  return aligned_alloc(unit, (bytes + unit - 1) / unit * unit);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept { free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t, std::align_val_t) noexcept { free(memory); }
