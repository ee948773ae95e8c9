// The linear layer alone: how much of the machine's arithmetic peak each kind of weights reaches, against the number of
// rows. GOPS = 2 * weights * rows / second, everything included (rows are read, quantised, multiplied, written). Peaks
// are measured in registers beside every figure, in the same moment, because the speed of shared machines drifts.
//
//   micro_gemm [--threads N] [--isa ROW] [--fast] [--quick] [--only KIND]
//
// Prints a table and, last, one JSON line. Not here: attention, the head, peers (compare.py).
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cpu/gemm.h"
#include "cpu/peak.h"
#include "cpu/pool.h"
#include "quant/types.h"

using namespace ld;

namespace {

// Seconds: of this thread's processor time where it works alone, which others on the machine disturb less.
double now(const Pool& pool) {
  if (pool.threads() > 1) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

constexpr double kPeakSeconds = 5e-3;  // beside every few products

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

Figure measure(const KernelRow& row, Pool& pool, const PackedMatrix& matrix, const char* kind, int m, bool integer,
               Math math, double seconds) {
  const int n = matrix.n(), k = matrix.k();
  const size_t size = (linear_scratch_bytes(m, k, pool.threads()) + 63) / 64 * 64;
  std::unique_ptr<void, decltype(&free)> memory(aligned_alloc(64, size), free);
  memset(memory.get(), 0, size);
  LinearScratch scratch(math, m, k, pool.threads(), memory.get());
  std::vector<float> x(static_cast<size_t>(m) * k), y(static_cast<size_t>(m) * n);
  std::mt19937 random(2);
  for (float& value : x) value = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
  LinearInput input = {};
  input.x = x.data();
  input.stride = input.width = k;
  const PackedOutput output = {&matrix, nullptr, y.data(), n, false};

  linear(row, pool, &scratch, input, m, &output, 1);
  std::vector<double> times, peaks;
  const double end = now(pool) + seconds;
  do {
    peaks.push_back(integer ? int8_peak(row, pool, kPeakSeconds) : f32_peak(row, pool, kPeakSeconds));
    for (int i = 0; i < 3; ++i) {
      const double begin = now(pool);
      linear(row, pool, &scratch, input, m, &output, 1);
      times.push_back(now(pool) - begin);
    }
  } while (now(pool) < end);
  std::sort(times.begin(), times.end());
  std::sort(peaks.begin(), peaks.end());
  const double operations = 2.0 * n * k * m / 1e9;
  const double median = times[times.size() / 4];
  return {kind,        n, k, m, operations / median, (times[times.size() * 3 / 4] - times[times.size() / 4]) / median,
          peaks.back()};  // the best: anything that interrupts a burst only makes it smaller
}

}  // namespace

int main(int argc, char** argv) {
  int threads = 0;
  double seconds = 0.4;
  Math math = Math::exact;
  const char *isa = nullptr, *only = nullptr;
  for (int i = 1; i < argc; ++i) {
    if (!strcmp(argv[i], "--threads") && i + 1 < argc) {
      threads = atoi(argv[++i]);
    } else if (!strcmp(argv[i], "--isa") && i + 1 < argc) {
      isa = argv[++i];
    } else if (!strcmp(argv[i], "--only") && i + 1 < argc) {
      only = argv[++i];
    } else if (!strcmp(argv[i], "--fast")) {
      math = Math::fast;
    } else if (!strcmp(argv[i], "--quick")) {
      seconds = 0.1;
    } else {
      fprintf(stderr, "usage: micro_gemm [--threads N] [--isa ROW] [--fast] [--quick] [--only KIND]\n");
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
  Pool pool(threads);
  printf("kernel row %s, %d threads\n", row->name, pool.threads());
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
      PackedMemory memory;
      {
        const std::vector<uint8_t> bytes = random_weights(type, shape[0], shape[1]);
        Tensor tensor = {"bench", &type, 2, {}, bytes};
        tensor.dims[0] = shape[1];
        tensor.dims[1] = shape[0];
        tensor.dims[2] = tensor.dims[3] = 1;
        matrix.reset(PackedMatrix::pack(*row, tensor, pool, &memory));
      }
      printf("%8s", type.name);
      for (int m : ms) {
        figures.push_back(measure(*row, pool, *matrix, type.name, m, kind.integer, math, seconds));
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
