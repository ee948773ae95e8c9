// A cuBLASLt on the processor, for tests: the functions of csrc/cuda/cublaslt.h with the meaning that NVIDIA's documentation
// gives them, built as a shared library that is opened like the real one. Strict where the real one is: sizes of
// attributes, shapes, alignment, workspace, algorithms that nobody was given. Products go to the emulator's stream, so that
// they are captured. An algorithm that is asked for without a promise of invariance adds in another order for up to
// kFewRows rows, and one that may split k does, so that a caller who does not care is found out.
// $LD_FAKE_CUBLASLT, words that make it fail or older: create, heuristic, check, matmul, execution, old; `promise`: that of invariance it does not keep. Not here: other types and
// orders, epilogues but a bias, batches.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>

#include "cuda/cublaslt.h"
#include "emulator.h"

namespace ld::cuda::cublaslt {

struct HandleOf {
  uint64_t alive = 0x4c742d66616b65;
};

struct MatmulDescOf {
  int32_t transpose_a = 0, invariant = 0;
  uint32_t epilogue = 1;
  const float* bias = nullptr;
};

struct LayoutOf {
  int32_t type;
  uint64_t rows, columns;
  int64_t leading;
};

struct PreferenceOf {
  uint64_t workspace = 0;
  uint32_t reduction = 7, alignment[4] = {256, 256, 256, 256};
};

namespace {

constexpr uint64_t kMagic = 0x6c646966665f6c74;
constexpr uint64_t kFewRows = 16;

// What is in Algorithm::data.
struct Configured {
  uint64_t magic, needs, few, alignment_d;
  int32_t splits, reduction;
};
static_assert(sizeof(Configured) <= sizeof(Algorithm));

int heuristics, products, captured_products;

bool told(const char* word) {
  const char* wanted = getenv("LD_FAKE_CUBLASLT");
  return wanted != nullptr && strstr(wanted, word) != nullptr;
}

float value(uint16_t bits) { return ld::bfloat_to_float(bits); }

bool aligned(const void* at, size_t bytes) { return reinterpret_cast<uintptr_t>(at) % bytes == 0; }

Configured read(const Algorithm& algorithm) {
  Configured configured;
  memcpy(&configured, &algorithm, sizeof configured);
  return configured;
}

// Whether the matrices belong together: a is k x n and transposed, b k x columns, c and d n x columns, columns all apart.
bool fits(const MatmulDescOf& product, const LayoutOf& a, const LayoutOf& b, const LayoutOf& c, const LayoutOf& d) {
  for (const LayoutOf* each : {&a, &b, &c, &d})
    if (each->rows == 0 || each->columns == 0 || each->leading < static_cast<int64_t>(each->rows)) return false;
  return product.transpose_a == kTransposed && a.type == kBfloat16 && b.type == kBfloat16 && c.type == kFloat32 &&
         d.type == kFloat32 && a.rows == b.rows && a.columns == d.rows && b.columns == d.columns && c.rows == d.rows &&
         c.columns == d.columns;
}

// How a matrix whose buffer is aligned to `least` bytes is aligned in all columns.
uint64_t alignment_of(const LayoutOf& matrix, uint64_t least) {
  const uint64_t column = matrix.leading * (matrix.type == kBfloat16 ? 2 : 4);
  while (least > 1 && column % least != 0) least /= 2;
  return least;
}

template <class T>
Status store(T* to, const void* value, size_t bytes) {
  if (value == nullptr || bytes != sizeof(T)) return kInvalidValue;
  return memcpy(to, value, sizeof(T)), kSuccess;
}

// A column of d at a time; the sum along k in parts, the parts in a row.
struct Work {
  const uint16_t *a, *b;
  const float *bias, *c;
  float *d, alpha, beta;
  LayoutOf of_a, of_b, of_c, of_d;
  Configured how;
  void operator()() const {
    const uint64_t k = of_a.rows;
    for (uint64_t column = 0; column < of_d.columns; ++column)
      for (uint64_t row = 0; row < of_d.rows; ++row) {
        const uint16_t *w = a + row * of_a.leading, *x = b + column * of_b.leading;
        float sum = 0;
        for (uint64_t part = 0; part < static_cast<uint64_t>(how.splits); ++part) {
          float partial = 0;
          for (uint64_t i = part * k / how.splits; i < (part + 1) * k / how.splits; ++i) {
            const uint64_t at = how.few ? k - 1 - i : i;
            partial += value(w[at]) * value(x[at]);
          }
          sum += partial;
        }
        float result = alpha * sum;
        if (beta != 0) result += beta * c[column * of_c.leading + row];
        if (bias != nullptr) result += bias[row];
        d[column * of_d.leading + row] = result;
      }
  }
};

}  // namespace
}  // namespace ld::cuda::cublaslt

using namespace ld::cuda::cublaslt;

#define LD_EXPORT extern "C" __attribute__((visibility("default")))

// How often the library was asked for algorithms and multiplied, and how many products were captured by a stream.
LD_EXPORT void ld_fake_cublaslt_calls(int* asked, int* multiplied, int* captured) {
  *asked = heuristics;
  *multiplied = products;
  *captured = captured_products;
}

LD_EXPORT Status cublasLtCreate(Handle* out) {
  if (told("create")) return kNotInitialized;
  return *out = new HandleOf, kSuccess;
}

LD_EXPORT Status cublasLtDestroy(Handle handle) {
  if (handle == nullptr) return kInvalidValue;
  return delete handle, kSuccess;
}

LD_EXPORT const char* cublasLtGetStatusName(Status status) {
  static const std::map<Status, const char*> names = {{kSuccess, "CUBLAS_STATUS_SUCCESS"},
                                                      {kNotInitialized, "CUBLAS_STATUS_NOT_INITIALIZED"},
                                                      {kInvalidValue, "CUBLAS_STATUS_INVALID_VALUE"},
                                                      {kExecutionFailed, "CUBLAS_STATUS_EXECUTION_FAILED"},
                                                      {kNotSupported, "CUBLAS_STATUS_NOT_SUPPORTED"}};
  const auto name = names.find(status);
  return name == names.end() ? "CUBLAS_STATUS_unknown" : name->second;
}

LD_EXPORT size_t cublasLtGetVersion() { return told("old") ? 120805 : 131000; }

LD_EXPORT Status cublasLtMatmulDescCreate(MatmulDesc* out, int32_t compute, int32_t scale) {
  if (compute != kComputeFloat32 || scale != kFloat32) return kNotSupported;
  return *out = new MatmulDescOf, kSuccess;
}

LD_EXPORT Status cublasLtMatmulDescDestroy(MatmulDesc product) { return delete product, kSuccess; }

LD_EXPORT Status cublasLtMatmulDescSetAttribute(MatmulDesc product, int32_t attribute, const void* value,
                                                size_t bytes) {
  if (product == nullptr) return kInvalidValue;
  if (attribute == kMatmulTransposeA) return store(&product->transpose_a, value, bytes);
  if (attribute == kMatmulEpilogue) return store(&product->epilogue, value, bytes);
  if (attribute == kMatmulBiasPointer) return store(&product->bias, value, bytes);
  if (attribute == kMatmulBatchInvariance && !told("old")) return store(&product->invariant, value, bytes);
  return kInvalidValue;
}

LD_EXPORT Status cublasLtMatrixLayoutCreate(Layout* out, int32_t type, uint64_t rows, uint64_t columns,
                                            int64_t leading) {
  return *out = new LayoutOf{type, rows, columns, leading}, kSuccess;
}

LD_EXPORT Status cublasLtMatrixLayoutDestroy(Layout layout) { return delete layout, kSuccess; }

LD_EXPORT Status cublasLtMatrixLayoutSetAttribute(Layout layout, int32_t attribute, const void* value, size_t bytes) {
  if (layout == nullptr || attribute != kLayoutColumns) return kInvalidValue;
  return store(&layout->columns, value, bytes);
}

LD_EXPORT Status cublasLtMatmulPreferenceCreate(Preference* out) { return *out = new PreferenceOf, kSuccess; }

LD_EXPORT Status cublasLtMatmulPreferenceDestroy(Preference preference) { return delete preference, kSuccess; }

LD_EXPORT Status cublasLtMatmulPreferenceSetAttribute(Preference preference, int32_t attribute, const void* value,
                                                      size_t bytes) {
  if (preference == nullptr) return kInvalidValue;
  if (attribute == kPreferWorkspace) return store(&preference->workspace, value, bytes);
  if (attribute == kPreferReduction) return store(&preference->reduction, value, bytes);
  if (attribute >= kPreferAlignment && attribute < kPreferAlignment + 4)
    return store(&preference->alignment[attribute - kPreferAlignment], value, bytes);
  return kInvalidValue;
}

LD_EXPORT Status cublasLtMatmulAlgoGetHeuristic(Handle handle, MatmulDesc product, Layout a, Layout b, Layout c,
                                                Layout d, Preference preference, int wanted, Heuristic* found,
                                                int* count) {
  if (handle == nullptr) return kNotInitialized;
  if (product == nullptr || preference == nullptr || wanted <= 0 || found == nullptr || count == nullptr)
    return kInvalidValue;
  *count = 0;
  ++heuristics;
  if (told("heuristic") || !fits(*product, *a, *b, *c, *d)) return kNotSupported;
  if (alignment_of(*a, preference->alignment[0]) < 16 || alignment_of(*b, preference->alignment[1]) < 16)
    return kNotSupported;
  const uint64_t of_d = alignment_of(*d, preference->alignment[3]);
  if (product->invariant != 0 && product->invariant != (of_d >= 16  ? kInvariantAligned16
                                                        : of_d >= 8 ? kInvariantAligned8
                                                                    : kInvariantAligned4))
    return kNotSupported;
  const auto add = [&](const Configured& configured) {
    if (*count == wanted || configured.needs > preference->workspace) return;
    Heuristic& result = found[(*count)++] = {};
    memcpy(&result.algorithm, &configured, sizeof configured);
    result.workspace = configured.needs;
    result.waves = 1;
  };
  const uint64_t few = product->invariant == 0 && d->columns <= kFewRows;
  if (preference->reduction & 2 && product->invariant == 0) add({kMagic, 1 << 20, few, of_d, 4, 2});
  add({kMagic, 1 << 16, few, of_d, 1, 0});
  return kSuccess;
}

LD_EXPORT Status cublasLtMatmulAlgoCheck(Handle handle, MatmulDesc product, Layout a, Layout b, Layout c, Layout d,
                                         const Algorithm* algorithm, Heuristic* found) {
  if (handle == nullptr) return kNotInitialized;
  if (product == nullptr || algorithm == nullptr || found == nullptr || !fits(*product, *a, *b, *c, *d))
    return kInvalidValue;
  const Configured configured = read(*algorithm);
  if (configured.magic != kMagic) return kInvalidValue;
  if (told("check") && d->columns == 7) return kNotSupported;
  found->workspace = configured.needs;
  found->state = kSuccess;
  return kSuccess;
}

LD_EXPORT Status cublasLtMatmulAlgoConfigGetAttribute(const Algorithm* algorithm, int32_t attribute, void* value,
                                                      size_t bytes, size_t* written) {
  if (algorithm == nullptr || value == nullptr || bytes != sizeof(int32_t) || read(*algorithm).magic != kMagic)
    return kInvalidValue;
  const Configured configured = read(*algorithm);
  if (attribute != kAlgorithmSplits && attribute != kAlgorithmReduction) return kInvalidValue;
  memcpy(value, attribute == kAlgorithmSplits ? &configured.splits : &configured.reduction, bytes);
  return *written = bytes, kSuccess;
}

LD_EXPORT Status cublasLtMatmul(Handle handle, MatmulDesc product, const void* alpha, const void* a, Layout of_a,
                                const void* b, Layout of_b, const void* beta, const void* c, Layout of_c, void* d,
                                Layout of_d, const Algorithm* algorithm, void* workspace, size_t workspace_bytes,
                                Stream stream) {
  if (handle == nullptr) return kNotInitialized;
  for (const void* each : {alpha, a, b, beta, c, static_cast<const void*>(d)})
    if (each == nullptr) return kInvalidValue;
  if (product == nullptr || algorithm == nullptr || !fits(*product, *of_a, *of_b, *of_c, *of_d)) return kInvalidValue;
  const Configured how = read(*algorithm);
  if (how.magic != kMagic || how.needs > workspace_bytes) return kInvalidValue;
  if (how.needs > 0 && (workspace == nullptr || !aligned(workspace, 256))) return kInvalidValue;
  if (!aligned(a, 16) || !aligned(b, 16) || !aligned(c, how.alignment_d) || !aligned(d, how.alignment_d))
    return kInvalidValue;
  const bool biased = product->epilogue == kEpilogueBias;
  if ((!biased && product->epilogue != 1) || (biased && (product->bias == nullptr || !aligned(product->bias, 16))))
    return kInvalidValue;
  if (told("matmul") || (told("promise") && product->invariant != 0)) return kNotSupported;
  if (told("execution")) return kExecutionFailed;
  ++products;
  const auto on = static_cast<cudaStream_t>(stream);
  captured_products += on != nullptr && on->captured;
  const Work work{static_cast<const uint16_t*>(a),
                  static_cast<const uint16_t*>(b),
                  biased ? product->bias : nullptr,
                  static_cast<const float*>(c),
                  static_cast<float*>(d),
                  *static_cast<const float*>(alpha),
                  *static_cast<const float*>(beta),
                  *of_a,
                  *of_b,
                  *of_c,
                  *of_d,
                  how};
  // The workspace is the caller's to lend: nothing of it survives.
  ld::cuda::run(on, [=] {
    memset(workspace, 0xff, how.needs);
    work();
  });
  return kSuccess;
}
