// The CUDA side of tensor.h: a tensor's device made the current one, and torch's stream there.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <stdexcept>
#include <string>

#include "tensor.h"

namespace neq::python {

// libtorch_cuda is looked up among what torch has loaded, never linked: one binary serves CPU and
// CUDA builds of torch.
inline void* current_cuda_stream(int32_t device, const char* op) {
  using GetStream = AOTITorchError (*)(int32_t device, void** stream);
  static const auto get_stream = []() -> GetStream {
    void* const library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library
               ? reinterpret_cast<GetStream>(dlsym(library, "aoti_torch_get_current_cuda_stream"))
               : nullptr;
  }();
  if (!get_stream) {
    throw std::runtime_error(std::string(op) +
                             ": expected aoti_torch_get_current_cuda_stream in a loaded "
                             "libtorch_cuda.so, found none; install a CUDA build of torch >= 2.10, "
                             "or use the torch backend");
  }
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(get_stream(device, &stream));
  return stream;
}

// For as long as it lives, what is launched goes to the tensor's device.
class OnCuda {
 public:
  OnCuda(const Tensor& tensor, const char* op)
      : guard_(tensor.get_device_index()),
        stream_(current_cuda_stream(tensor.get_device_index(), op)) {}
  void* stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_;
};

// Uninitialized memory for the core on the tensor's device, which keeps it until the stream is
// done.
inline Tensor scratch_on(const Tensor& tensor, int64_t bytes) {
  const auto size = (bytes + static_cast<int64_t>(sizeof(double)) - 1) / sizeof(double);
  return uninitialized(tensor, {static_cast<int64_t>(size)}, ScalarType::Double);
}

}  // namespace neq::python
