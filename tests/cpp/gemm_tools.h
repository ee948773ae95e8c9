// What the tests of matrix products share: random matrices of every type, packing, and products through a scratch whose
// memory is filled with rubbish and guarded.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cpu/gemm.h"
#include "cpu/pool.h"
#include "quant/types.h"
#include "test.h"

namespace ld {

inline const TensorType kTypes[] = {TensorType::f32,  TensorType::f16,    TensorType::bf16,   TensorType::q4_0,
                                    TensorType::q4_1, TensorType::q5_0,   TensorType::q5_1,   TensorType::q8_0,
                                    TensorType::q4_k, TensorType::q5_k,   TensorType::q6_k,   TensorType::q2_k,
                                    TensorType::q3_k, TensorType::iq4_nl, TensorType::iq4_xs, TensorType::mxfp4};

inline bool is_integer(TensorType type) {
  return type != TensorType::f32 && type != TensorType::f16 && type != TensorType::bf16;
}

inline std::vector<const KernelRow*> supported_rows() {
  int count;
  const KernelRow* rows = kernel_rows(&count);
  std::vector<const KernelRow*> out;
  for (int i = 0; i < count; ++i) {
    if (rows[i].supported()) {
      out.push_back(rows + i);
    } else {
      printf("not run here: kernel row %s\n", rows[i].name);
    }
  }
  return out;
}

// Where the float16 scales of a block are, by type; -1 ends the list.
inline std::vector<int> half_offsets(TensorType type) {
  switch (type) {
    case TensorType::q4_0:
    case TensorType::q5_0:
    case TensorType::q8_0:
    case TensorType::iq4_nl:
    case TensorType::iq4_xs:
      return {0};
    case TensorType::q2_k:
      return {80, 82};
    case TensorType::q3_k:
      return {108};
    case TensorType::q6_k:
      return {208};
    case TensorType::f32:
    case TensorType::f16:
    case TensorType::bf16:
    case TensorType::mxfp4:  // an exponent
      return {};
    default:
      return {0, 2};
  }
}

// A matrix of random bytes with scales of a sensible size (both signs), or random floats.
struct Matrix {
  Matrix(TensorType type, int n, int k, uint64_t seed) : n(n), k(k), traits(type_traits(static_cast<int32_t>(type))) {
    std::mt19937_64 random(seed);
    bytes.resize(static_cast<size_t>(n) * k / traits->block * traits->block_bytes);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    const size_t step = type == TensorType::f32 ? 4 : type == TensorType::f16 || type == TensorType::bf16 ? 2 : 0;
    for (size_t i = 0; step && i < bytes.size(); i += step) {
      const float value = std::uniform_real_distribution<float>(-1, 1)(random);
      uint32_t bits;
      memcpy(&bits, &value, 4);
      const uint16_t bf16 = static_cast<uint16_t>(bits >> 16),
                     f16 = static_cast<uint16_t>((random() & 0x83ff) | 0x3400);
      memcpy(&bytes[i],
             type == TensorType::f32 ? static_cast<const void*>(&value)
                                     : static_cast<const void*>(type == TensorType::f16 ? &f16 : &bf16),
             step);
    }
    for (size_t i = 0; i < bytes.size(); i += traits->block_bytes) {
      for (int offset : half_offsets(type)) set_half(i + offset, static_cast<uint16_t>((random() & 0x87ff) | 0x2000));
      if (type == TensorType::mxfp4) bytes[i] = static_cast<uint8_t>(118 + random() % 8);
    }
  }
  void set_half(size_t at, uint16_t bits) { memcpy(&bytes[at], &bits, 2); }
  Tensor tensor() const {
    Tensor t;
    t.name = "blk.0.test.weight";
    t.type = traits;
    t.n_dims = 2;
    t.dims[0] = k;
    t.dims[1] = n;
    t.dims[2] = t.dims[3] = 1;
    t.data = bytes;
    return t;
  }
  std::vector<float> decoded() const {
    std::vector<float> w(static_cast<size_t>(n) * k);
    traits->decode(bytes.data(), w.data(), w.size());
    return w;
  }

  int n, k;
  const TypeTraits* traits;
  std::vector<uint8_t> bytes;
};

inline std::vector<float> random_floats(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(count);
  for (float& value : out) value = normal(random);
  return out;
}

// Scratch with its memory; the memory is not zeroed and has a guard behind it.
struct Scratch {
  Scratch(int rows, int k, int threads, Math math = Math::exact)
      : bytes(linear_scratch_bytes(rows, k, threads)), size(bytes + 64) {
    memory.reset(static_cast<uint8_t*>(aligned_alloc(64, (size + 63) / 64 * 64)));
    memset(memory.get(), 0xa5, size);
    scratch = std::make_unique<LinearScratch>(math, rows, k, threads, memory.get());
  }
  bool intact() const {
    for (size_t i = bytes; i < size; ++i) {
      if (memory.get()[i] != 0xa5) return false;
    }
    return true;
  }
  struct Free {
    void operator()(void* p) const { free(p); }
  };
  size_t bytes, size;
  std::unique_ptr<uint8_t, Free> memory;
  std::unique_ptr<LinearScratch> scratch;
};

inline LinearInput plain(const std::vector<float>& x, int k) {
  LinearInput input = {};
  input.x = x.data();
  input.stride = input.width = k;
  return input;
}

inline std::unique_ptr<PackedMatrix> pack(const KernelRow& row, const Matrix& matrix, int threads = 1) {
  Pool pool(threads);
  PackedMemory memory;  // the matrix keeps its part alive
  return std::unique_ptr<PackedMatrix>(PackedMatrix::pack(row, matrix.tensor(), pool, &memory));
}

inline std::vector<float> multiply(const KernelRow& row, const PackedMatrix& matrix, const std::vector<float>& x,
                                   int rows, int threads = 1, Math math = Math::exact) {
  Pool pool(threads);
  Scratch scratch(rows, matrix.k(), threads, math);
  std::vector<float> y(static_cast<size_t>(rows) * matrix.n(), -1e30f);
  const PackedOutput output = {&matrix, nullptr, y.data(), matrix.n(), false};
  linear(row, pool, scratch.scratch.get(), plain(x, matrix.k()), rows, &output, 1);
  CHECK(scratch.intact());
  return y;
}

// Checks y against a product in double, relative to the sum of magnitudes: float32 sums of k terms stay far below.
inline void check_product(const char* what, const Matrix& matrix, const std::vector<float>& w,
                          const std::vector<float>& x, int rows, const std::vector<float>& y) {
  constexpr double kBudget = 4e-6;  // largest seen 6e-7
  double worst = 0;
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < matrix.n; ++c) {
      double sum = 0, magnitude = 1e-30;
      for (int i = 0; i < matrix.k; ++i) {
        const double product =
            static_cast<double>(w[static_cast<size_t>(c) * matrix.k + i]) * x[static_cast<size_t>(r) * matrix.k + i];
        sum += product;
        magnitude += std::fabs(product);
      }
      const double error = std::fabs(y[static_cast<size_t>(r) * matrix.n + c] - sum) / magnitude;
      if (!(error <= worst)) worst = error;
    }
  }
  if (!(worst <= kBudget)) printf("    %s: relative error %g\n", what, worst);
  CHECK(worst <= kBudget);
}

inline bool same_bits(const float* a, const float* b, size_t count) { return memcmp(a, b, count * sizeof(float)) == 0; }

}  // namespace ld
