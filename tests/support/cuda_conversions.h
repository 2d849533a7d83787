#pragma once
// The CUDA toolkit's conversions as its headers compute them on the host: the judge of our own.
// Without the toolkit, cuda_conversions_present() is false and the others must not be called.
#include <cstdint>

#include "kernels/core/numeric.h"

namespace stoa::test {

bool cuda_conversions_present();
/// CUDART_VERSION of the headers, 0 without.
int cuda_headers_version();
/// out[i] = x[i] as e4m3 | e5m2 (saturating), fp16 or bf16, for i < n.
void cuda_from_float(e4m3* out, const float* x, std::int64_t n);
void cuda_from_float(e5m2* out, const float* x, std::int64_t n);
void cuda_from_float(fp16* out, const float* x, std::int64_t n);
void cuda_from_float(bf16* out, const float* x, std::int64_t n);
/// Exact: every 8-bit value is an fp16.
fp16 cuda_to_fp16(e4m3 x);
fp16 cuda_to_fp16(e5m2 x);
float cuda_to_float(fp16 x);

}  // namespace stoa::test
