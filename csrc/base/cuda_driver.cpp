#include "base/cuda_driver.h"

#include "base/check.h"

#if defined(__unix__)
#include <dlfcn.h>
#endif

namespace hm {

#if defined(__unix__)

CudaDriver::CudaDriver(const std::string& library) {
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* reason = dlerror();
    throw Error("CUDA driver: " + std::string(reason == nullptr ? library : reason));
  }
  launch_host_func_ = reinterpret_cast<LaunchHostFunc>(dlsym(handle, "cuLaunchHostFunc"));
  check(launch_host_func_ != nullptr, "CUDA driver: ", library,
        " has no cuLaunchHostFunc, expected a driver for CUDA 10 or later");
  memcpy_async_ = reinterpret_cast<MemcpyAsync>(dlsym(handle, "cuMemcpyAsync"));
  check(memcpy_async_ != nullptr, "CUDA driver: ", library,
        " has no cuMemcpyAsync, expected a driver for CUDA 10 or later");
  get_error_string_ = reinterpret_cast<GetErrorString>(dlsym(handle, "cuGetErrorString"));
}

#else

CudaDriver::CudaDriver(const std::string& library) {
  throw Error("CUDA driver: " + library + " can be loaded on Unix only");
}

#endif

void CudaDriver::launch(void* stream, void (*function)(void*), void* data) const {
  check_result("cuLaunchHostFunc", launch_host_func_(stream, function, data));
}

void CudaDriver::copy(void* stream, uint64_t dst, uint64_t src, std::size_t num_bytes) const {
  check_result("cuMemcpyAsync", memcpy_async_(dst, src, num_bytes, stream));
}

void CudaDriver::check_result(const char* name, int result) const {
  if (result == 0) [[likely]]
    return;
  const char* text = nullptr;
  if (get_error_string_ != nullptr) get_error_string_(result, &text);
  check(false, "CUDA driver: ", name, " failed with error ", result, ": ",
        text == nullptr ? "no description" : text);
}

}  // namespace hm
