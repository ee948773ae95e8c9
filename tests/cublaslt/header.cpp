// csrc/cuda/cublaslt.h against the real cublasLt.h: every number, structure and prototype. Compiling it is the test
// (tests/test_cublaslt.py, where a cublasLt.h is found).
#include <cublasLt.h>

#include <type_traits>

#include "cuda/cublaslt.h"

namespace {

using namespace ld::cuda::cublaslt;

// Arguments travel alike: pointers as pointers, enumerations as integers of their size.
template <class Ours, class Theirs>
constexpr bool kAlike = sizeof(Ours) == sizeof(Theirs) &&
                        std::is_pointer_v<Ours> == std::is_pointer_v<Theirs>&& std::is_floating_point_v<Ours> ==
                            std::is_floating_point_v<Theirs>;

template <class Ours, class Theirs>
struct Same : std::false_type {};
template <class Result, class... Arguments, class TheirResult, class... Theirs>
struct Same<Result(Arguments...), TheirResult(Theirs...)> {
  static constexpr bool count = sizeof...(Arguments) == sizeof...(Theirs);
  static constexpr bool value = [] {
    if constexpr (count) return kAlike<Result, TheirResult> && (kAlike<Arguments, Theirs> && ...);
    return false;
  }();
};

#define LD_SAME_FUNCTION(name, Prototype, theirs) \
  static_assert(Same<Prototype, decltype(cublasLt##theirs)>::value, #name);
LD_CUBLASLT_FUNCTIONS(LD_SAME_FUNCTION)

static_assert(kSuccess == CUBLAS_STATUS_SUCCESS && kNotInitialized == CUBLAS_STATUS_NOT_INITIALIZED &&
              kInvalidValue == CUBLAS_STATUS_INVALID_VALUE && kArchMismatch == CUBLAS_STATUS_ARCH_MISMATCH &&
              kExecutionFailed == CUBLAS_STATUS_EXECUTION_FAILED && kNotSupported == CUBLAS_STATUS_NOT_SUPPORTED);
static_assert(kFloat32 == CUDA_R_32F && kBfloat16 == CUDA_R_16BF && kComputeFloat32 == CUBLAS_COMPUTE_32F);
static_assert(kTransposed == CUBLAS_OP_T && CUBLAS_OP_N == 0);
static_assert(kLayoutColumns == CUBLASLT_MATRIX_LAYOUT_COLS);
static_assert(kMatmulTransposeA == CUBLASLT_MATMUL_DESC_TRANSA && kMatmulEpilogue == CUBLASLT_MATMUL_DESC_EPILOGUE &&
              kMatmulBiasPointer == CUBLASLT_MATMUL_DESC_BIAS_POINTER);
static_assert(kEpilogueBias == CUBLASLT_EPILOGUE_BIAS);
static_assert(kPreferWorkspace == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES &&
              kPreferReduction == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK &&
              kPreferAlignment == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES &&
              kPreferAlignment + 1 == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES &&
              kPreferAlignment + 2 == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES &&
              kPreferAlignment + 3 == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
static_assert(CUBLASLT_REDUCTION_SCHEME_NONE == 0);
static_assert(kAlgorithmSplits == CUBLASLT_ALGO_CONFIG_SPLITK_NUM &&
              kAlgorithmReduction == CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME);
static_assert(CUBLASLT_POINTER_MODE_HOST == 0 && CUBLASLT_ORDER_COL == 0 && CUBLASLT_EPILOGUE_DEFAULT == 1);

// A macro could tell nothing of an enumerator: the attribute came with 13.10.
#if CUBLAS_VERSION >= 131000
static_assert(kMatmulBatchInvariance == CUBLASLT_MATMUL_DESC_BATCH_INVARIANCE_FLAGS &&
              sizeof(cublasLtMatmulBatchInvarianceFlags_t) == sizeof(int32_t) &&
              kNotInvariant == CUBLASLT_BATCH_INVARIANCE_DISABLED &&
              kInvariantAligned4 == CUBLASLT_BATCH_INVARIANCE_ALIGN_4B &&
              kInvariantAligned8 == CUBLASLT_BATCH_INVARIANCE_ALIGN_8B &&
              kInvariantAligned16 == CUBLASLT_BATCH_INVARIANCE_ALIGN_16B);
#endif

using Theirs = cublasLtMatmulHeuristicResult_t;
static_assert(sizeof(Algorithm) == sizeof(cublasLtMatmulAlgo_t) && sizeof(Heuristic) == sizeof(Theirs));
static_assert(offsetof(Heuristic, workspace) == offsetof(Theirs, workspaceSize) &&
              offsetof(Heuristic, state) == offsetof(Theirs, state) &&
              offsetof(Heuristic, waves) == offsetof(Theirs, wavesCount));

}  // namespace
