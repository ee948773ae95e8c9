// Products of bfloat16 matrices with float32 sums by cuBLASLt, a library of NVIDIA's that is opened at run time and may be
// absent; tensor.cu has a kernel for the same products. A row's result does not depend on how many rows there are. Not here:
// making bfloat16 of weights and rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "cuda/runtime.h"

namespace ld::cuda {

// y[r * y_stride + i] = or += sum over j of w[i * k + j] * x[r * x_stride + j], plus bias[i].
struct BlasProduct {
  const uint16_t* w;  // [n, k]
  int n, k;
  const uint16_t* x;  // [rows, k]
  ptrdiff_t x_stride;
  const float* bias;  // [n] or null
  float* y;
  ptrdiff_t y_stride;
  bool add;
};

// The library, and what it was asked about kinds of products. Calls may come from several threads.
class Blas {
 public:
  static constexpr size_t kWorkspace = size_t{32} << 20;  // bytes, aligned to 256

  // The library in the file `named`, or the one that the loader finds. Null and the reason where none can be used. Throws
  // Failure where a named one cannot be opened.
  static std::unique_ptr<Blas> open(const char* named, std::string* reason);
  ~Blas();

  const std::string& name() const;  // with its version
  // False, and nothing is done, where the library does not take such a product: decided by the first of its shape and
  // alignment, and then the same for every number of rows. Throws Failure where one fails that it takes.
  bool multiply(cudaStream_t stream, const BlasProduct& product, int rows, void* workspace);

 private:
  struct Library;
  explicit Blas(std::unique_ptr<Library> library);
  std::unique_ptr<Library> library_;
};

}  // namespace ld::cuda
