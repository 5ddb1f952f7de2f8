// Kernels for AVX2: four instructions multiply and add what VNNI does in one.
#include "kernels.h"
#include "lanes_avx2.h"

namespace {
constexpr bool DOTS = false;
inline __m256i dots(__m256i sums, __m256i, __m256i) { return sums; }  // never called
}  // namespace

#include "kernels_x86.inc"
#include "convolution.inc"
#include "delta.inc"

namespace mmedge {

const Kernels& avx2_kernels() {
    static constexpr Kernels found = {"avx2", norm, gate, quantize, multiply, pack, rotate, keep, attend, look_up, convolve, unit, rates, move};
    return found;
}

}  // namespace mmedge
