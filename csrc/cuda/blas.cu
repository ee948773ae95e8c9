// cuBLASLt by name: a weight [n, k] in rows is a column-major matrix of k x n that is transposed, rows of activations one of
// k x rows, results one of n x rows. Sums are float32 (CUBLAS_COMPUTE_32F: no TF32, no narrower sums).
//
// A row must not depend on its company. A library that promises that itself (batch invariance, since 13.10, on cards and
// types it knows) is asked for an algorithm for each number of rows. Any other is asked once per kind of product, for
// kReferenceRows, and that algorithm then serves every number of rows; algorithms that split k are forbidden and looked for
// once more in the answer. What is assumed of such an algorithm: it is a kernel with a tile, whose loop along k runs over
// the whole of k in one order whatever the number of tiles, so that more rows mean more tiles and nothing else.
// tests/test_cublaslt.py compares rows in batches of several sizes, on a GPU too.
#include <dlfcn.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <type_traits>
#include <vector>

#include "cuda/blas.h"
#include "cuda/context.h"
#include "cuda/cublaslt.h"

namespace ld::cuda {
namespace {

using namespace cublaslt;

constexpr int kReferenceRows = 512;
constexpr int kTriedRows[] = {1, 2, 7, 16, 33, 64, 100, 128, 300, 1024, 4096};  // that an algorithm has to serve
constexpr int kMostAlgorithms = 8;
constexpr uintptr_t kAlignment = 16;  // bytes, of all that is read; results may have less

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % kAlignment == 0; }

// The functions of the library.
struct Functions {
#define LD_MEMBER(name, Prototype, theirs) Prototype* name = nullptr;
  LD_CUBLASLT_FUNCTIONS(LD_MEMBER)
#undef LD_MEMBER

  // What is missing in the library, or null.
  const char* find_in(void* library) {
#define LD_FIND(name, Prototype, theirs)                                   \
  name = reinterpret_cast<Prototype*>(dlsym(library, "cublasLt" #theirs)); \
  if (name == nullptr) return "cublasLt" #theirs;
    LD_CUBLASLT_FUNCTIONS(LD_FIND)
#undef LD_FIND
    return nullptr;
  }
};

template <class Descriptor>
using Owned = std::unique_ptr<std::remove_pointer_t<Descriptor>, Status (*)(Descriptor)>;

// Products that differ in addresses and the number of rows only.
struct Kind {
  int n, k;
  ptrdiff_t x_stride, y_stride;
  int alignment;  // of the results, bytes
  bool bias, add;
  auto operator<=>(const Kind&) const = default;
};

Kind kind_of(const BlasProduct& p) {
  const uintptr_t result = reinterpret_cast<uintptr_t>(p.y) | static_cast<uintptr_t>(p.y_stride) * sizeof(float);
  const int alignment = result % 16 == 0 ? 16 : result % 8 == 0 ? 8 : 4;
  return {p.n, p.k, p.x_stride, p.y_stride, alignment, p.bias != nullptr, p.add};
}

// Whether products of a kind are the library's: decided by the first one, for all that follow.
enum class Decision { asked, taken, refused };

// What the library was told and asked about a kind of products.
struct Plan {
  Owned<MatmulDesc> product;
  Owned<Layout> w, x, y;
  bool invariant = false;                 // as the library promises
  std::map<int, Algorithm> algorithms{};  // by the rows they were asked for
  Decision decision = Decision::asked;
};

}  // namespace

struct Blas::Library {
  Functions call;
  Handle handle = nullptr;
  std::string name;
  std::mutex mutex;
  std::map<Kind, Plan> plans;

  ~Library() {
    plans.clear();
    if (handle != nullptr) call.destroy(handle);
  }

  void check(Status status, const char* what) const {
    if (status != kSuccess)
      refuse(LD_INTERNAL, text("%s failed %s: %s; LOCALDIFF_CUDA_PRODUCTS=bfloat16-own does without it", name.c_str(),
                               what, call.status_name(status)));
  }

  Owned<Layout> layout(int32_t type, int rows, int columns, ptrdiff_t leading) const {
    Layout made = nullptr;
    check(call.layout_create(&made, type, rows, columns, leading), "describing a matrix");
    return {made, call.layout_destroy};
  }

  template <class T>
  bool set(const Plan& plan, int32_t attribute, T value) const {
    return call.matmul_desc_set(plan.product.get(), attribute, &value, sizeof value) == kSuccess;
  }

  void set_bias(const Plan& plan, const float* bias) const {
    if (bias != nullptr && !set(plan, kMatmulBiasPointer, bias)) check(kInvalidValue, "taking a bias");
  }

  void set_rows(const Plan& plan, int rows) const {
    const uint64_t columns = rows;
    for (const Layout layout : {plan.x.get(), plan.y.get()})
      check(call.layout_set(layout, kLayoutColumns, &columns, sizeof columns), "describing a matrix");
  }

  // Algorithms for so many rows, the fastest first.
  std::vector<Heuristic> ask(const Plan& plan, const Kind& kind, int rows) const {
    Preference made = nullptr;
    check(call.preference_create(&made), "describing what is preferred");
    const Owned<Preference> preference(made, call.preference_destroy);
    const auto prefer = [&](int32_t attribute, auto value) {
      check(call.preference_set(made, attribute, &value, sizeof value), "describing what is preferred");
    };
    prefer(kPreferWorkspace, uint64_t{kWorkspace});
    prefer(kPreferReduction, uint32_t{0});
    for (int matrix = 0; matrix < 4; ++matrix)
      prefer(kPreferAlignment + matrix, static_cast<uint32_t>(matrix < 2 ? kAlignment : kind.alignment));
    set_rows(plan, rows);
    std::vector<Heuristic> found(kMostAlgorithms);
    int count = 0;
    const Status status = call.heuristic(handle, plan.product.get(), plan.w.get(), plan.x.get(), plan.y.get(),
                                         plan.y.get(), made, kMostAlgorithms, found.data(), &count);
    found.resize(status == kSuccess ? count : 0);
    return found;
  }

  bool sums_in_one_sequence(const Algorithm& algorithm) const {
    int32_t splits = -1;
    uint32_t reduction = 1;
    size_t written = 0;
    return call.algorithm_get(&algorithm, kAlgorithmSplits, &splits, sizeof splits, &written) == kSuccess &&
           call.algorithm_get(&algorithm, kAlgorithmReduction, &reduction, sizeof reduction, &written) == kSuccess &&
           (splits == 0 || splits == 1) && reduction == 0;
  }

  bool serves(const Plan& plan, const Algorithm& algorithm, int rows) const {
    set_rows(plan, rows);
    Heuristic found{};
    return call.algorithm_check(handle, plan.product.get(), plan.w.get(), plan.x.get(), plan.y.get(), plan.y.get(),
                                &algorithm, &found) == kSuccess &&
           found.workspace <= kWorkspace;
  }

  // What multiplies so many rows; null where there is nothing.
  const Algorithm* algorithm_for(Plan& plan, const Kind& kind, int rows) const {
    if (!plan.invariant) rows = kReferenceRows;
    const auto known = plan.algorithms.find(rows);
    if (known != plan.algorithms.end()) return &known->second;
    for (const Heuristic& each : ask(plan, kind, rows)) {
      const auto good = [&](int count) { return serves(plan, each.algorithm, count); };
      if (each.state == kSuccess && sums_in_one_sequence(each.algorithm) &&
          (plan.invariant ? good(rows) : std::all_of(std::begin(kTriedRows), std::end(kTriedRows), good)))
        return &(plan.algorithms[rows] = each.algorithm);
    }
    return nullptr;
  }

  Plan make(const Kind& kind, const float* bias) const {
    MatmulDesc made = nullptr;
    check(call.matmul_desc_create(&made, kComputeFloat32, kFloat32), "describing a product");
    Plan plan{{made, call.matmul_desc_destroy},
              layout(kBfloat16, kind.k, kind.n, kind.k),
              layout(kBfloat16, kind.k, kReferenceRows, kind.x_stride),
              layout(kFloat32, kind.n, kReferenceRows, kind.y_stride)};
    if (!set(plan, kMatmulTransposeA, kTransposed) || (kind.bias && !set(plan, kMatmulEpilogue, kEpilogueBias)))
      check(kInvalidValue, "describing a product");
    set_bias(plan, bias);
    const int32_t promise = kind.alignment == 16  ? kInvariantAligned16
                            : kind.alignment == 8 ? kInvariantAligned8
                                                  : kInvariantAligned4;
    plan.invariant = set(plan, kMatmulBatchInvariance, promise);
    return plan;
  }

  Plan& plan_of(const Kind& kind, const float* bias) {
    const auto known = plans.find(kind);
    return known != plans.end() ? known->second : plans.emplace(kind, make(kind, bias)).first->second;
  }
};

Blas::Blas(std::unique_ptr<Library> library) : library_(std::move(library)) {}
Blas::~Blas() = default;

std::unique_ptr<Blas> Blas::open(const char* named, std::string* reason) {
  void* file = nullptr;
  std::string failure;
  const std::vector<const char*> files =
      named != nullptr ? std::vector{named} : std::vector{"libcublasLt.so.13", "libcublasLt.so.12"};
  for (const char* each : files) {
    if ((file = dlopen(each, RTLD_NOW | RTLD_LOCAL)) != nullptr) break;
    if (failure.empty()) failure = dlerror();
  }
  if (file == nullptr && named != nullptr)
    refuse(LD_INVALID, text("LOCALDIFF_CUBLASLT is no library that can be opened: %s", failure.c_str()));
  *reason = failure;
  if (file == nullptr) return nullptr;
  auto library = std::make_unique<Library>();
  const char* missing = library->call.find_in(file);
  if (missing != nullptr && named != nullptr)
    refuse(LD_INVALID, text("LOCALDIFF_CUBLASLT is '%s', which has no %s; expected libcublasLt.so of CUDA 12 or 13",
                            named, missing));
  if (missing != nullptr) return *reason = text("cuBLASLt has no %s", missing), nullptr;
  const size_t version = library->call.version();
  library->name = text("cuBLASLt %zu.%zu.%zu", version / 10000, version / 100 % 100, version % 100);
  const Status status = library->call.create(&library->handle);
  if (status == kSuccess) return std::unique_ptr<Blas>(new Blas(std::move(library)));
  *reason = text("%s cannot be used: %s", library->name.c_str(), library->call.status_name(status));
  library->handle = nullptr;
  return nullptr;
}

const std::string& Blas::name() const { return library_->name; }

bool Blas::multiply(cudaStream_t stream, const BlasProduct& p, int rows, void* workspace) {
  if (!aligned(p.w) || !aligned(p.x) || !aligned(p.bias) || p.k * sizeof(*p.w) % kAlignment != 0) return false;
  const Library& library = *library_;
  const std::lock_guard lock(library_->mutex);
  const Kind kind = kind_of(p);
  Plan& plan = library_->plan_of(kind, p.bias);
  const float alpha = 1, beta = p.add ? 1 : 0;
  while (plan.decision != Decision::refused) {
    library.set_bias(plan, p.bias);
    const bool known = plan.decision == Decision::taken || library.algorithm_for(plan, kind, kReferenceRows) != nullptr;
    const Algorithm* algorithm = known ? library.algorithm_for(plan, kind, rows) : nullptr;
    library.set_rows(plan, rows);
    const Status status = algorithm == nullptr
                              ? kNotSupported
                              : library.call.matmul(library.handle, plan.product.get(), &alpha, p.w, plan.w.get(), p.x,
                                                    plan.x.get(), &beta, p.y, plan.y.get(), p.y, plan.y.get(),
                                                    algorithm, workspace, kWorkspace, stream);
    if (status == kSuccess) return plan.decision = Decision::taken, true;
    const bool refused = status == kNotSupported || status == kInvalidValue || status == kArchMismatch;
    if (plan.decision == Decision::taken || !refused)
      library.check(status, text("multiplying %d rows of %d values by %d columns", rows, p.k, p.n).c_str());
    plan.algorithms.clear();
    if (!plan.invariant || !library.set(plan, kMatmulBatchInvariance, kNotInvariant)) plan.decision = Decision::refused;
    plan.invariant = false;
  }
  return false;
}

}  // namespace ld::cuda
