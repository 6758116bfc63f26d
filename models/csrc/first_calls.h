// The first call of each of MKL's elementwise functions, made before any thread exists.
//
// The MKL in libtorch 2.13 (2024.2) chooses a function's code in its first call. Of two first calls at once, one may run the
// code of lowest accuracy, twelve bits, whatever was asked for (pytorch issue 188792): angles of the first step, say, would be
// wrong in the fourth digit, without a word and not in every run. What has been called once is chosen for good.
#pragma once
#include <ATen/Functions.h>

#include <initializer_list>

namespace {

// Those that libtorch leaves to MKL, by ATen/cpu/vml.h; f32 and f64 have code of their own each.
__attribute__((constructor)) void call_elementwise_functions_once() {
  using Function = at::Tensor (*)(const at::Tensor&);
  constexpr Function functions[] = {at::acos, at::asin,  at::atan,  at::cos, at::erf,  at::erfc, at::erfinv, at::exp,
                                    at::log,  at::log10, at::log2, at::sin, at::sqrt, at::tan,  at::tanh,   at::trunc};
  const at::NoGradGuard guard;
  for (const auto kind : {at::kFloat, at::kDouble}) {
    const at::Tensor x = at::full({8}, 0.5, kind);
    for (const Function function : functions) function(x);
  }
}

}  // namespace
