/* libcublas.so.13 and libcublasLt.so.13: matrix products that are noted and not computed. */
#include "stand_in.h"
#include <stdlib.h>

#define PRODUCT_OF(name) int name(void) { return stand_in_note(PRODUCT, NULL, NULL, 0, NULL), SUCCESS; }

const char *cublasGetStatusName(int status) { return (void)status, "stand-in"; }
const char *cublasGetStatusString(int status) { return (void)status, "stand-in"; }
MAKES(cublasCreate_v2)
NOTHING(cublasDestroy_v2)
NOTHING(cublasGetMathMode)
NOTHING(cublasSetMathMode)
NOTHING(cublasSetStream_v2)
NOTHING(cublasScopy_v2)
NOTHING(cublasSscal_v2)
NOTHING(cublasDgetrfBatched)
NOTHING(cublasDgetriBatched)
NOTHING(cublasSgetrfBatched)
NOTHING(cublasSgetriBatched)
PRODUCT_OF(cublasDgeam)
PRODUCT_OF(cublasSgeam)
PRODUCT_OF(cublasGemmEx)
PRODUCT_OF(cublasGemmBatchedEx)
PRODUCT_OF(cublasGemmStridedBatchedEx)
PRODUCT_OF(cublasSgemm_v2)
PRODUCT_OF(cublasSgemmBatched)
PRODUCT_OF(cublasSgemmStridedBatched)
PRODUCT_OF(cublasDgemm_v2)
PRODUCT_OF(cublasDgemmBatched)
PRODUCT_OF(cublasDgemmStridedBatched)

MAKES(cublasLtCreate)
MAKES(cublasLtMatmulDescCreate)
MAKES(cublasLtMatmulPreferenceCreate)
MAKES(cublasLtMatrixLayoutCreate)
MAKES(cublasLtMatrixTransformDescCreate)
NOTHING(cublasLtDestroy)
NOTHING(cublasLtMatmulAlgoConfigSetAttribute)
NOTHING(cublasLtMatmulAlgoGetHeuristic)
NOTHING(cublasLtMatmulAlgoInit)
NOTHING(cublasLtMatmulDescDestroy)
NOTHING(cublasLtMatmulDescSetAttribute)
NOTHING(cublasLtMatmulPreferenceDestroy)
NOTHING(cublasLtMatmulPreferenceSetAttribute)
NOTHING(cublasLtMatrixLayoutDestroy)
NOTHING(cublasLtMatrixLayoutSetAttribute)
NOTHING(cublasLtMatrixTransform)
NOTHING(cublasLtMatrixTransformDescDestroy)
PRODUCT_OF(cublasLtMatmul)
