// The linear layer alone: how much of the machine's arithmetic peak each kind of weights reaches, against the number of
// rows. GOPS = 2 * weights * rows / second, everything included (rows are read, quantised, multiplied, written). Peaks
// are measured in registers beside every figure, in the same moment, because the speed of shared machines drifts.
//
//   micro_gemm [--threads N] [--isa ROW] [--quick] [--only KIND]
//
// Prints a table and, last, one JSON line. Not here: attention, the head, peers (compare.py).
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cpu/gemm.h"
#include "cpu/pool.h"
#include "quant/types.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

using namespace ld;

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// ---- peaks ----

// One burst of independent multiply-adds in registers, `n` rounds; returns the operations done.
#if defined(__x86_64__)
#define LD_TEN(op, a, b)                                                                                         \
  op " " a "," b ",%%" R "0\n" op " " a "," b ",%%" R "1\n" op " " a "," b ",%%" R "2\n" op " " a "," b ",%%" R  \
     "3\n" op " " a "," b ",%%" R "4\n" op " " a "," b ",%%" R "5\n" op " " a "," b ",%%" R "6\n" op " " a "," b \
     ",%%" R "7\n" op " " a "," b ",%%" R "8\n" op " " a "," b ",%%" R "9\n"
#define R "zmm"
__attribute__((target("avx512f,avx512vnni"))) double burst_vnni(int n) {
  for (int i = 0; i < n; ++i) {
    asm volatile(LD_TEN("vpdpbusd", "%%zmm15", "%%zmm15")::
                     : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9");
  }
  return 10.0 * n * 128;
}
__attribute__((target("avx512f"))) double burst_fma512(int n) {
  asm volatile("vpxord %%zmm15,%%zmm15,%%zmm15" ::: "xmm15");
  for (int i = 0; i < n; ++i) {
    asm volatile(LD_TEN("vfmadd231ps", "%%zmm15", "%%zmm15")::
                     : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9");
  }
  return 10.0 * n * 32;
}
#undef R
#define R "ymm"
__attribute__((target("avx2,fma"))) double burst_fma256(int n) {
  asm volatile("vpxor %%ymm15,%%ymm15,%%ymm15" ::: "xmm15");
  for (int i = 0; i < n; ++i) {
    asm volatile(LD_TEN("vfmadd231ps", "%%ymm15", "%%ymm15")::
                     : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9");
  }
  return 10.0 * n * 16;
}
// vpmaddubsw and the 16-bit add that every exact use of it needs.
__attribute__((target("avx2"))) double burst_maddubs(int n) {
  for (int i = 0; i < n; ++i) {
    asm volatile(
        "vpmaddubsw %%ymm15,%%ymm14,%%ymm10\n vpaddw %%ymm10,%%ymm0,%%ymm0\n"
        "vpmaddubsw %%ymm15,%%ymm14,%%ymm11\n vpaddw %%ymm11,%%ymm1,%%ymm1\n"
        "vpmaddubsw %%ymm15,%%ymm14,%%ymm12\n vpaddw %%ymm12,%%ymm2,%%ymm2\n"
        "vpmaddubsw %%ymm15,%%ymm14,%%ymm13\n vpaddw %%ymm13,%%ymm3,%%ymm3\n" ::
            : "xmm0", "xmm1", "xmm2", "xmm3", "xmm10", "xmm11", "xmm12", "xmm13");
  }
  return 4.0 * n * 64;
}
#undef R
#undef LD_TEN
#endif

struct Peak {
  const char* name;
  double (*burst)(int n);
};

// GOPS of a burst on all threads of the pool.
double measure_peak(Pool& pool, const Peak& peak) {
  constexpr int kRounds = 200'000;
  std::vector<double> operations(pool.threads() * 4);
  const double begin = now();
  pool.parallel(pool.threads() * 4, [&](int task, int) { operations[task] = peak.burst(kRounds); });
  double sum = 0;
  for (double each : operations) sum += each;
  return sum / (now() - begin) / 1e9;
}

// ---- layers ----

struct Kind {
  TensorType type;
  bool integer;
};
const Kind kKinds[] = {{TensorType::q4_0, true}, {TensorType::q4_1, true}, {TensorType::q4_k, true},
                       {TensorType::q6_k, true}, {TensorType::q8_0, true}, {TensorType::f16, false},
                       {TensorType::f32, false}};

// Random bytes are valid weights of every type once the scales are set; only speed is looked at.
std::vector<uint8_t> random_weights(const TypeTraits& type, int n, int k) {
  std::vector<uint8_t> bytes(static_cast<size_t>(n) * k / type.block * type.block_bytes);
  std::mt19937 random(1);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random() & 0x3b);  // every half and float stays finite
  return bytes;
}

struct Figure {
  std::string kind;
  int n, k, m;
  double gops, spread, peak;
};

Figure measure(const KernelRow& row, Pool& pool, const PackedMatrix& matrix, const char* kind, int m, const Peak& peak,
               double seconds) {
  const int n = matrix.n(), k = matrix.k();
  const size_t size = (linear_scratch_bytes(m, k, pool.threads()) + 63) / 64 * 64;
  std::unique_ptr<void, decltype(&free)> memory(aligned_alloc(64, size), free);
  memset(memory.get(), 0, size);
  LinearScratch scratch(m, k, pool.threads(), memory.get());
  std::vector<float> x(static_cast<size_t>(m) * k), y(static_cast<size_t>(m) * n);
  std::mt19937 random(2);
  for (float& value : x) value = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
  LinearInput input = {};
  input.x = x.data();
  input.stride = input.width = k;
  const PackedOutput output = {&matrix, nullptr, y.data(), n, false};

  linear(row, pool, &scratch, input, m, &output, 1);
  std::vector<double> times, peaks;
  const double end = now() + seconds;
  do {
    peaks.push_back(measure_peak(pool, peak));
    for (int i = 0; i < 3; ++i) {
      const double begin = now();
      linear(row, pool, &scratch, input, m, &output, 1);
      times.push_back(now() - begin);
    }
  } while (now() < end);
  std::sort(times.begin(), times.end());
  std::sort(peaks.begin(), peaks.end());
  const double operations = 2.0 * n * k * m / 1e9;
  const double median = times[times.size() / 2];
  return {kind,        n, k, m, operations / median, (times[times.size() * 3 / 4] - times[times.size() / 4]) / median,
          peaks.back()};  // the best: anything that interrupts a burst only makes it smaller
}

}  // namespace

int main(int argc, char** argv) {
  int threads = 0;
  double seconds = 0.4;
  const char *isa = nullptr, *only = nullptr;
  for (int i = 1; i < argc; ++i) {
    if (!strcmp(argv[i], "--threads") && i + 1 < argc) {
      threads = atoi(argv[++i]);
    } else if (!strcmp(argv[i], "--isa") && i + 1 < argc) {
      isa = argv[++i];
    } else if (!strcmp(argv[i], "--only") && i + 1 < argc) {
      only = argv[++i];
    } else if (!strcmp(argv[i], "--quick")) {
      seconds = 0.1;
    } else {
      fprintf(stderr, "usage: micro_gemm [--threads N] [--isa ROW] [--quick] [--only KIND]\n");
      return 2;
    }
  }
  int count;
  const KernelRow* rows = kernel_rows(&count);
  const KernelRow* row = nullptr;
  for (int i = count - 1; i >= 0; --i) {
    if (rows[i].supported() && (!isa || !strcmp(isa, rows[i].name))) row = rows + i;
  }
  if (!row) {
    fprintf(stderr, "micro_gemm: no kernel row \"%s\" on this processor\n", isa);
    return 2;
  }
  Peak integer = {"none", [](int n) { return static_cast<double>(n); }}, real = integer;
#if defined(__x86_64__)
  if (!strcmp(row->name, "avx512_vnni")) {
    integer = {"vpdpbusd zmm", burst_vnni};
    real = {"fma zmm", burst_fma512};
  } else if (!strcmp(row->name, "avx2")) {
    integer = {"vpmaddubsw + vpaddw ymm", burst_maddubs};
    real = {"fma ymm", burst_fma256};
  }
#endif

  Pool pool(threads);
  printf("kernel row %s, %d threads; integer peak: %s, float peak: %s\n", row->name, pool.threads(), integer.name,
         real.name);
  std::vector<Figure> figures;
  const int shapes[][2] = {{11008, 4096}, {1536, 576}};
  for (const auto& shape : shapes) {
    printf("\nN %d, K %d: GOPS (share of peak)\n%8s", shape[0], shape[1], "M");
    const int ms[] = {8, 32, 64, 128, 256, 512};
    for (int m : ms) printf("%14d", m);
    printf("\n");
    for (const Kind& kind : kKinds) {
      const TypeTraits& type = *type_traits(static_cast<int32_t>(kind.type));
      if (shape[1] % type.block || (only && strcmp(only, type.name))) continue;
      std::unique_ptr<PackedMatrix> matrix;
      {
        const std::vector<uint8_t> bytes = random_weights(type, shape[0], shape[1]);
        Tensor tensor = {"bench", &type, 2, {}, bytes};
        tensor.dims[0] = shape[1];
        tensor.dims[1] = shape[0];
        tensor.dims[2] = tensor.dims[3] = 1;
        matrix.reset(PackedMatrix::pack(*row, tensor, pool));
      }
      printf("%8s", type.name);
      for (int m : ms) {
        figures.push_back(measure(*row, pool, *matrix, type.name, m, kind.integer ? integer : real, seconds));
        const Figure& f = figures.back();
        printf("%8.0f (%2.0f%%)", f.gops, 100 * f.gops / f.peak);
        fflush(stdout);
      }
      printf("\n");
    }
  }
  printf("\n{\"bench\": \"micro_gemm\", \"isa\": \"%s\", \"threads\": %d, \"figures\": [", row->name, pool.threads());
  for (size_t i = 0; i < figures.size(); ++i) {
    const Figure& f = figures[i];
    printf("%s{\"kind\": \"%s\", \"n\": %d, \"k\": %d, \"m\": %d, \"gops\": %.1f, \"spread\": %.3f, \"peak\": %.1f}",
           i ? ", " : "", f.kind.c_str(), f.n, f.k, f.m, f.gops, f.spread, f.peak);
  }
  printf("]}\n");
}
