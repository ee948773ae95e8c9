// Products by cuBLASLt (cuda/blas.cu) with a library that stands in for it (tests/cublaslt/fake.cpp): values against double
// precision, rows that do not depend on their number with a library that promises it and with one that does not, what is
// not taken, and every failure. Not tested here: NVIDIA's library (tests/test_cublaslt.py, on a GPU).
#include <dlfcn.h>

#include <cmath>
#include <random>
#include <vector>

#include "cuda/blas.h"
#include "cuda/context.h"
#include "quant/half.h"
#include "test.h"

using namespace ld;

namespace {

// A word for the library, as long as this lives.
struct Told {
  explicit Told(const char* word) { setenv("LD_FAKE_CUBLASLT", word, 1); }
  ~Told() { unsetenv("LD_FAKE_CUBLASLT"); }
};

struct Calls {
  int asked = 0, multiplied = 0, captured = 0;
};

Calls calls() {
  using Count = void(int*, int*, int*);
  static const auto count =
      reinterpret_cast<Count*>(dlsym(dlopen(LD_FAKE_CUBLASLT, RTLD_NOW | RTLD_LOCAL), "ld_fake_cublaslt_calls"));
  Calls now;
  count(&now.asked, &now.multiplied, &now.captured);
  return now;
}

std::unique_ptr<cuda::Blas> open_fake() {
  std::string reason;
  return cuda::Blas::open(LD_FAKE_CUBLASLT, &reason);
}

struct FreeAligned {
  void operator()(void* at) const { free(at); }
};

// Device memory, aligned as CUDA's is.
template <class T>
struct Array {
  explicit Array(size_t count) : values(static_cast<T*>(aligned_alloc(256, (count * sizeof(T) / 256 + 1) * 256))) {}
  std::unique_ptr<T, FreeAligned> values;
  T* get() const { return values.get(); }
};

struct Case {
  int n, k, gap;  // of rows of y
  bool bias, add;
  int most_rows;
  Array<uint16_t> w, x;
  Array<float> offsets, y, before;
  Array<uint8_t> workspace{cuda::Blas::kWorkspace};

  Case(int n_, int k_, int gap_, bool bias_, bool add_, int most_rows_)
      : n(n_),
        k(k_),
        gap(gap_),
        bias(bias_),
        add(add_),
        most_rows(most_rows_),
        w(static_cast<size_t>(n) * k),
        x(static_cast<size_t>(most_rows) * k),
        offsets(n),
        y(static_cast<size_t>(most_rows) * (n + gap)),
        before(static_cast<size_t>(most_rows) * (n + gap)) {
    std::mt19937 random(n * 1000 + k);
    std::normal_distribution<float> normal;
    for (int i = 0; i < n * k; ++i) w.get()[i] = float_to_bfloat(normal(random));
    for (int i = 0; i < most_rows * k; ++i) x.get()[i] = float_to_bfloat(normal(random));
    for (int i = 0; i < n; ++i) offsets.get()[i] = normal(random);
    for (int i = 0; i < most_rows * (n + gap); ++i) before.get()[i] = normal(random);
  }
  cuda::BlasProduct product() const {
    return {w.get(), n, k, x.get(), k, bias ? offsets.get() : nullptr, y.get(), n + gap, add};
  }
  bool run(cuda::Blas& blas, int rows) {
    std::copy_n(before.get(), static_cast<size_t>(most_rows) * (n + gap), y.get());
    return blas.multiply(nullptr, product(), rows, workspace.get());
  }
  double expected(int row, int column, double* size) const {
    double sum = 0;
    *size = 1;
    for (int i = 0; i < k; ++i) {
      const double term =
          static_cast<double>(bfloat_to_float(w.get()[column * k + i])) * bfloat_to_float(x.get()[row * k + i]);
      sum += term;
      *size += std::fabs(term);
    }
    return sum + (bias ? offsets.get()[column] : 0) + (add ? before.get()[row * (n + gap) + column] : 0);
  }
};

std::vector<float> first_row(const Case& c) { return {c.y.get(), c.y.get() + c.n}; }

// What multiply() or open() says that failed.
template <class Act>
std::string failure_of(Act act) {
  try {
    act();
  } catch (const Failure& failure) {
    return failure.message;
  }
  return "";
}

}  // namespace

TEST(products_are_those_of_double_precision) {
  const auto blas = open_fake();
  REQUIRE(blas != nullptr);
  CHECK_EQ(blas->name(), "cuBLASLt 13.10.0");
  for (const auto& [n, k, gap] : {std::tuple{96, 64, 0}, {33, 32, 4}, {7, 8, 0}, {1, 256, 3}}) {
    for (const bool bias : {false, true}) {
      for (const bool add : {false, true}) {
        Case c(n, k, gap, bias, add, 21);
        for (const int rows : {1, 20}) {
          REQUIRE(c.run(*blas, rows));
          for (int row = 0; row < c.most_rows; ++row)
            for (int column = 0; column < n + gap; ++column) {
              const float found = c.y.get()[row * (n + gap) + column];
              double size = 0;
              if (row < rows && column < n) {
                const double expected = c.expected(row, column, &size);
                CHECK(std::fabs(found - expected) <= 1e-6 * size);
              } else {
                CHECK_EQ(found, c.before.get()[row * (n + gap) + column]);
              }
            }
        }
      }
    }
  }
}

TEST(a_row_does_not_depend_on_how_many_there_are) {
  for (const char* word : {"", "old", "promise"}) {
    const Told told(word);
    const auto blas = open_fake();
    Case c(24, 256, 0, true, false, 300);
    REQUIRE(c.run(*blas, 300));
    const auto expected = first_row(c);
    for (const int rows : {1, 7, 16, 17, 64}) {
      CHECK(c.run(*blas, rows));
      CHECK(first_row(c) == expected);
    }
  }
}

TEST(algorithms_are_asked_for_once) {
  for (const auto& [word, expected] : {std::pair{"", 3}, {"old", 1}}) {  // of a promise: for every number of rows
    const Told told(word);
    const auto blas = open_fake();
    Case c(24, 64, 0, false, false, 9);
    const Calls before = calls();
    for (const int rows : {9, 4, 9, 4}) CHECK(c.run(*blas, rows));
    CHECK_EQ(calls().asked - before.asked, expected);
    CHECK_EQ(calls().multiplied - before.multiplied, 4);
  }
}

TEST(products_are_captured_by_a_stream) {
  const auto blas = open_fake();
  Case c(16, 32, 0, false, false, 3);
  c.run(*blas, 3);
  const auto expected = first_row(c);
  cudaStream_t stream;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  const Calls before = calls();
  std::fill_n(c.y.get(), 16 * 3, 0.0f);
  blas->multiply(stream, c.product(), 3, c.workspace.get());
  CHECK_EQ(calls().captured - before.captured, 1);
  CHECK_EQ(c.y.get()[0], 0.0f);
  cudaGraph_t graph;
  cudaGraphExec_t made;
  REQUIRE(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
  cudaGraphInstantiate(&made, graph, 0);
  cudaGraphLaunch(made, stream);
  CHECK(first_row(c) == expected);
  cudaGraphExecDestroy(made);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST(what_is_not_taken) {
  const auto blas = open_fake();
  Case c(24, 64, 0, true, false, 7), odd(24, 63, 0, false, false, 2), gap(24, 64, 1, false, false, 2);
  CHECK(!odd.run(*blas, 2));
  CHECK(gap.run(*blas, 2));
  const auto changed = [&](auto change) {
    cuda::BlasProduct product = c.product();
    change(product);
    return blas->multiply(nullptr, product, 2, c.workspace.get());
  };
  CHECK(!changed([](cuda::BlasProduct& p) { p.w += 1; }));
  CHECK(!changed([](cuda::BlasProduct& p) { p.x += 4; }));
  CHECK(!changed([](cuda::BlasProduct& p) { p.bias += 1; }));
  CHECK(changed([](cuda::BlasProduct& p) { p.y += 1; }));
  for (const char* words : {"heuristic", "old,heuristic", "check", "old,check", "matmul", "old,matmul"}) {
    const auto other = open_fake();  // no algorithm, none that serves 7 rows, or none that runs
    {
      const Told told(words);
      CHECK(!c.run(*other, 7));
      CHECK(std::equal(c.before.get(), c.before.get() + 7 * 24, c.y.get()));
    }
    CHECK(!c.run(*other, 2));  // and so for every number of rows
  }
}

TEST(failures_are_sentences) {
  std::string reason;
  {
    const Told told("create");
    CHECK(cuda::Blas::open(LD_FAKE_CUBLASLT, &reason) == nullptr);
    CHECK_EQ(reason, "cuBLASLt 13.10.0 cannot be used: CUBLAS_STATUS_NOT_INITIALIZED");
  }
  CHECK(failure_of([&] {
          cuda::Blas::open("/nowhere/libcublasLt.so.13", &reason);
        }).find("no library that can be opened") != std::string::npos);
  CHECK(failure_of([&] { cuda::Blas::open("libm.so.6", &reason); }).find("has no cublasLtCreate") != std::string::npos);
  const auto blas = open_fake();
  Case c(24, 64, 0, false, false, 7);
  REQUIRE(c.run(*blas, 2));
  {
    const Told told("check");  // too late to give up the kind
    CHECK(failure_of([&] { c.run(*blas, 7); }).find("failed multiplying 7 rows") != std::string::npos);
  }
  const Told told("execution");
  CHECK_EQ(failure_of([&] { c.run(*blas, 2); }),
           "cuBLASLt 13.10.0 failed multiplying 2 rows of 64 values by 24 columns: CUBLAS_STATUS_EXECUTION_FAILED; "
           "LOCALDIFF_CUDA_PRODUCTS=bfloat16-own does without it");
}
