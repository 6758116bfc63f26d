// How the C++ side looks into tensors, and how its exceptions end before Rust.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstring>

#include "kernels.h"

namespace {

// Calls f with typed pointers' element type: float or bf16.
template <class F>
auto by_kind(const at::Tensor& x, F f) {
  TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16, "expected f32 or bf16, got ", x.scalar_type());
  return x.scalar_type() == at::kFloat ? f(static_cast<float*>(nullptr)) : f(static_cast<pipe_kernels::bf16*>(nullptr));
}

template <class T>
T* data(const at::Tensor& x) {
  return static_cast<T*>(x.data_ptr());
}

template <class F>
at::Tensor* guarded(char** error, F f) {
  try {
    return new at::Tensor(f());
  } catch (const c10::Error& e) {
    *error = strdup(e.what_without_backtrace());
  } catch (const std::exception& e) {
    *error = strdup(e.what());
  }
  return nullptr;
}

}  // namespace
