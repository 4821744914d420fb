// Which CUDA the kernels were built with, and which the driver of this machine serves.
#include <cuda_runtime.h>

#include "neq/neq.h"
#include "status.h"

neq_status neq_cuda_versions(int32_t* runtime, int32_t* driver) {
  if (runtime == nullptr || driver == nullptr) {
    return neq::fail(NEQ_INVALID_ARGUMENT, "%s: expected a place to write to, got NULL",
                     runtime == nullptr ? "runtime" : "driver");
  }
  *runtime = CUDART_VERSION;
  *driver = 0;
  const cudaError_t error = cudaDriverGetVersion(driver);
  if (error == cudaSuccess) return NEQ_OK;
  cudaGetLastError();  // or the next launch would report it
  return neq::fail(NEQ_CUDA_ERROR, "cudaDriverGetVersion: %s", cudaGetErrorString(error));
}
