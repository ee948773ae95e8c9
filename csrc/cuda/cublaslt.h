// The part of cuBLASLt's public interface that blas.cu uses, declared by hand so that no header of cuBLAS is needed to build
// the plug-in. Numbers and prototypes are those of cublasLt.h, the same in cuBLAS 12 and 13; descriptors are handles, made
// by the library, whose contents differ between the two. tests/cublaslt/header.cpp compares all of it with the real
// header, tests/cublaslt/fake.cpp is a library of this interface for tests. Not here: opening it (blas.cu).
#pragma once

#include <cstddef>
#include <cstdint>

namespace ld::cuda::cublaslt {

using Handle = struct HandleOf*;
using MatmulDesc = struct MatmulDescOf*;
using Layout = struct LayoutOf*;
using Preference = struct PreferenceOf*;
using Stream = void*;  // cudaStream_t

// cublasStatus_t
using Status = int32_t;
constexpr Status kSuccess = 0, kNotInitialized = 1, kInvalidValue = 7, kArchMismatch = 8, kExecutionFailed = 13,
                 kNotSupported = 15;

// cudaDataType_t, cublasComputeType_t, cublasOperation_t
constexpr int32_t kFloat32 = 0, kBfloat16 = 14, kComputeFloat32 = 68, kTransposed = 1;

// cublasLtMatrixLayoutAttribute_t
constexpr int32_t kLayoutColumns = 3;  // uint64_t

// cublasLtMatmulDescAttributes_t; the last one since 13.10, others refuse it
constexpr int32_t kMatmulTransposeA = 3;        // int32_t
constexpr int32_t kMatmulEpilogue = 7;          // uint32_t
constexpr int32_t kMatmulBiasPointer = 8;       // const void*
constexpr int32_t kMatmulBatchInvariance = 41;  // int32_t

// cublasLtEpilogue_t
constexpr uint32_t kEpilogueBias = 4;  // bias[row of D], of D's type

// cublasLtMatmulBatchInvarianceFlags_t: what D is aligned to
constexpr int32_t kNotInvariant = 0, kInvariantAligned4 = 2, kInvariantAligned8 = 3, kInvariantAligned16 = 4;

// cublasLtMatmulPreferenceAttributes_t
constexpr int32_t kPreferWorkspace = 1;  // uint64_t, bytes at most
constexpr int32_t kPreferReduction = 3;  // uint32_t, mask of cublasLtReductionScheme_t; 0 = only sums in one sequence
constexpr int32_t kPreferAlignment = 5;  // uint32_t, bytes of A; B, C and D follow

// cublasLtMatmulAlgoConfigAttributes_t
constexpr int32_t kAlgorithmSplits = 2;     // int32_t, parts that k is split into, 0 or 1 = none
constexpr int32_t kAlgorithmReduction = 3;  // uint32_t

struct Algorithm {
  uint64_t data[8];
};

struct Heuristic {
  Algorithm algorithm;
  size_t workspace;
  Status state;
  float waves;
  int reserved[4];
};

using Create = Status(Handle*);
using Destroy = Status(Handle);
using StatusName = const char*(Status);
using Version = size_t();
using MatmulDescCreate = Status(MatmulDesc*, int32_t compute, int32_t scale);
using MatmulDescDestroy = Status(MatmulDesc);
using MatmulDescSet = Status(MatmulDesc, int32_t attribute, const void* value, size_t bytes);
using LayoutCreate = Status(Layout*, int32_t type, uint64_t rows, uint64_t columns, int64_t leading);
using LayoutDestroy = Status(Layout);
using LayoutSet = Status(Layout, int32_t attribute, const void* value, size_t bytes);
using PreferenceCreate = Status(Preference*);
using PreferenceDestroy = Status(Preference);
using PreferenceSet = Status(Preference, int32_t attribute, const void* value, size_t bytes);
using GetHeuristic = Status(Handle, MatmulDesc, Layout a, Layout b, Layout c, Layout d, Preference, int wanted,
                            Heuristic* found, int* count);
using AlgorithmCheck = Status(Handle, MatmulDesc, Layout a, Layout b, Layout c, Layout d, const Algorithm*,
                              Heuristic* found);
using AlgorithmGet = Status(const Algorithm*, int32_t attribute, void* value, size_t bytes, size_t* written);
using Matmul = Status(Handle, MatmulDesc, const void* alpha, const void* a, Layout, const void* b, Layout,
                      const void* beta, const void* c, Layout, void* d, Layout, const Algorithm*, void* workspace,
                      size_t workspace_bytes, Stream);

// Every function that is used: LD_EACH(name here, prototype, name in the library without "cublasLt").
#define LD_CUBLASLT_FUNCTIONS(LD_EACH)                                    \
  LD_EACH(create, Create, Create)                                         \
  LD_EACH(destroy, Destroy, Destroy)                                      \
  LD_EACH(status_name, StatusName, GetStatusName)                         \
  LD_EACH(version, Version, GetVersion)                                   \
  LD_EACH(matmul_desc_create, MatmulDescCreate, MatmulDescCreate)         \
  LD_EACH(matmul_desc_destroy, MatmulDescDestroy, MatmulDescDestroy)      \
  LD_EACH(matmul_desc_set, MatmulDescSet, MatmulDescSetAttribute)         \
  LD_EACH(layout_create, LayoutCreate, MatrixLayoutCreate)                \
  LD_EACH(layout_destroy, LayoutDestroy, MatrixLayoutDestroy)             \
  LD_EACH(layout_set, LayoutSet, MatrixLayoutSetAttribute)                \
  LD_EACH(preference_create, PreferenceCreate, MatmulPreferenceCreate)    \
  LD_EACH(preference_destroy, PreferenceDestroy, MatmulPreferenceDestroy) \
  LD_EACH(preference_set, PreferenceSet, MatmulPreferenceSetAttribute)    \
  LD_EACH(heuristic, GetHeuristic, MatmulAlgoGetHeuristic)                \
  LD_EACH(algorithm_check, AlgorithmCheck, MatmulAlgoCheck)               \
  LD_EACH(algorithm_get, AlgorithmGet, MatmulAlgoConfigGetAttribute)      \
  LD_EACH(matmul, Matmul, Matmul)

}  // namespace ld::cuda::cublaslt
