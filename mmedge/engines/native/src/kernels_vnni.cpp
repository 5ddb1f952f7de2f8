// Kernels for AVX-512 VNNI and for AVX-VNNI, on vectors of 256 bits; the file is compiled once for each, and by `make test-native` a
// third time for processors that have neither, with the instruction's work done by others.
#include "kernels.h"
#include "lanes_avx2.h"

namespace {

constexpr bool DOTS = true;

// Adds to each of eight sums the products of four unsigned and four signed bytes.
inline __m256i dots(__m256i sums, __m256i weights, __m256i codes) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return _mm256_dpbusd_epi32(sums, weights, codes);
#elif defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(sums, weights, codes);
#else
    const __m256i zero = _mm256_setzero_si256();
    const __m256i sign = _mm256_cmpgt_epi8(zero, codes);
    const __m256i low = _mm256_madd_epi16(_mm256_unpacklo_epi8(weights, zero), _mm256_unpacklo_epi8(codes, sign));
    const __m256i high = _mm256_madd_epi16(_mm256_unpackhi_epi8(weights, zero), _mm256_unpackhi_epi8(codes, sign));
    return _mm256_add_epi32(sums, _mm256_hadd_epi32(low, high));
#endif
}

}  // namespace

#include "kernels_x86.inc"
#include "convolution.inc"
#include "delta.inc"

namespace mmedge {

#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
const Kernels& avx512vnni_kernels() {
    static constexpr Kernels found = {"avx512vnni", norm, gate, quantize, multiply, pack, rotate, keep, attend, look_up, convolve, unit, rates, move};
    return found;
}
#elif defined(__AVXVNNI__)
const Kernels& avxvnni_kernels() {
    static constexpr Kernels found = {"avxvnni", norm, gate, quantize, multiply, pack, rotate, keep, attend, look_up, convolve, unit, rates, move};
    return found;
}
#else
const Kernels& emulated_vnni_kernels() {
    static constexpr Kernels found = {"emulated", norm, gate, quantize, multiply, pack, rotate, keep, attend, look_up, convolve, unit, rates, move};
    return found;
}
#endif

}  // namespace mmedge
