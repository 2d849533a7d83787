#include "tests/support/cuda_conversions.h"

#if __has_include(<cuda_fp8.h>) && __has_include(<cuda_runtime_api.h>)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime_api.h>

namespace stoa::test {
namespace {

template <class Code>
void to_fp8(Code* out, const float* x, std::int64_t n, __nv_fp8_interpretation_t format) {
    for (std::int64_t i = 0; i < n; ++i)
        out[i].bits = __nv_cvt_float_to_fp8(x[i], __NV_SATFINITE, format);
}

}  // namespace

bool cuda_conversions_present() { return true; }
int cuda_headers_version() { return CUDART_VERSION; }
void cuda_from_float(e4m3* out, const float* x, std::int64_t n) { to_fp8(out, x, n, __NV_E4M3); }
void cuda_from_float(e5m2* out, const float* x, std::int64_t n) { to_fp8(out, x, n, __NV_E5M2); }
void cuda_from_float(fp16* out, const float* x, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i)
        out[i].bits = static_cast<__half_raw>(__float2half_rn(x[i])).x;
}
void cuda_from_float(bf16* out, const float* x, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i)
        out[i].bits = static_cast<__nv_bfloat16_raw>(__float2bfloat16_rn(x[i])).x;
}
fp16 cuda_to_fp16(e4m3 x) { return {__nv_cvt_fp8_to_halfraw(x.bits, __NV_E4M3).x}; }
fp16 cuda_to_fp16(e5m2 x) { return {__nv_cvt_fp8_to_halfraw(x.bits, __NV_E5M2).x}; }
float cuda_to_float(fp16 x) { return __half2float(__half(__half_raw{x.bits})); }

}  // namespace stoa::test
#else
#include <cstdlib>

namespace stoa::test {

bool cuda_conversions_present() { return false; }
int cuda_headers_version() { return 0; }
void cuda_from_float(e4m3*, const float*, std::int64_t) { std::abort(); }
void cuda_from_float(e5m2*, const float*, std::int64_t) { std::abort(); }
void cuda_from_float(fp16*, const float*, std::int64_t) { std::abort(); }
void cuda_from_float(bf16*, const float*, std::int64_t) { std::abort(); }
fp16 cuda_to_fp16(e4m3) { std::abort(); }
fp16 cuda_to_fp16(e5m2) { std::abort(); }
float cuda_to_float(fp16) { std::abort(); }

}  // namespace stoa::test
#endif
