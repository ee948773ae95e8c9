// Weights in another form than the file's, made on the device. The first product that reads a form makes a copy for all
// sessions, which stays where free memory allows it; where it does not, every product makes what it reads, part by part, in
// scratch of its session. Both have the same values. A form is a matrix of another type, those of experts side by side:
//   bf16 rounded, [n][k]
//   i8   folded for fast arithmetic (cpu/fold.h): [n][k] bytes, then float32 scales [ceil(k / 128)][n]
// Not here: the kernels that make a form and that multiply with it.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "cuda/kernels.h"

namespace ld {

class Memory;
struct Context;
struct Device;
struct Weight;

// The form in which sessions read quantised weights; none = as they lie in the file.
std::optional<TensorType> session_form(const Device& device, Math math);

// What a matrix of n channels takes in a form.
size_t form_bytes(TensorType form, size_t n, size_t k);

// Scratch of sessions for the parts of forms, of matrices up to these sizes.
size_t form_scratch(std::optional<TensorType> form, size_t most_n, size_t most_k);

// The copies of a device's weights. For all threads.
class Copies {
 public:
  // The copy of weights that are multiplied together, of which `first` is the first. Where there is none, bytes of memory
  // that make(Memory&) has filled when it returns; null where so many are not free.
  template <class Make>
  std::shared_ptr<Memory> find_or_make(const Weight* first, TensorType form, size_t bytes, Make make) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::shared_ptr<Memory>& copy = copies_[{first, form}];
    if (copy == nullptr) {
      std::shared_ptr<Memory> made = take(bytes);
      if (made != nullptr) make(*made);
      copy = std::move(made);
    }
    return copy;
  }
  void forget(const Weight* first);
  // Lets go of copies that no session uses if fewer bytes are free.
  void make_room(size_t bytes);
  size_t bytes() const;

 private:
  std::shared_ptr<Memory> take(size_t bytes) const;

  mutable std::mutex mutex_;
  std::map<std::pair<const Weight*, TensorType>, std::shared_ptr<Memory>> copies_;
};

// As cuda::multiply and cuda::multiply_experts, with weights in the session's form. product.w is weight->matrix, or that of
// each of `weights`; `data` of experts is where they lie as in the file.
void multiply(Context* c, const Weight* weight, const cuda::Product& product, int rows);
void multiply_experts(Context* c, const Weight* const* weights, const cuda::ExpertProduct& product, int most_rows);

}  // namespace ld
