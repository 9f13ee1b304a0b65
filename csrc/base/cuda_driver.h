// Two functions of the CUDA driver, found at run time: nothing of CUDA is needed to build this.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace hm {

class CudaDriver {
 public:
  // Loads the driver ("libcuda.so.1", or a path). It is never unloaded: its threads may still be
  // inside a host function when the process ends. Throws Error where it is missing or too old.
  explicit CudaDriver(const std::string& library);

  // Lets a thread of the driver call function(data) once all work that is in the stream so far is
  // done; later work of the stream waits for it. `function` must not throw, nor call CUDA. Where
  // the stream is being captured, each launch of the graph calls it. Throws Error.
  void launch(void* stream, void (*function)(void*), void* data) const;

  // Queues a copy between any two addresses that the driver knows, or from any memory of the host.
  // Throws Error.
  void copy(void* stream, uint64_t dst, uint64_t src, std::size_t num_bytes) const;

 private:
  // The driver's declarations: CUresult is an int, CUstream a pointer.
  using LaunchHostFunc = int (*)(void* stream, void (*function)(void*), void* data);
  using MemcpyAsync = int (*)(uint64_t dst, uint64_t src, std::size_t num_bytes, void* stream);
  using GetErrorString = int (*)(int result, const char** text);

  void check_result(const char* name, int result) const;

  LaunchHostFunc launch_host_func_ = nullptr;
  MemcpyAsync memcpy_async_ = nullptr;
  GetErrorString get_error_string_ = nullptr;  // null: a message has the number alone
};

}  // namespace hm
