// Kernels for ARM64: for NEON alone, for processors that add four products of bytes at once (dotprod), and for those that multiply two
// rows of eight bytes by two (i8mm). The file is compiled once for each.
#include "kernels.h"
#include "lanes_neon.h"

namespace {

#if defined(__ARM_FEATURE_MATMUL_INT8)
constexpr bool SQUARES = true;
#else
constexpr bool SQUARES = false;
#endif

// Adds the products of two rows of eight bytes with two others: (row of `a`, row of `b`).
inline int32x4_t squares(int32x4_t sums, [[maybe_unused]] int8x16_t a, [[maybe_unused]] int8x16_t b) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
    return vmmlaq_s32(sums, a, b);
#else
    return sums;  // never called
#endif
}

// Adds to each of four sums the products of four bytes. Two products of a weight and a code fit in 16 bits: codes are at least -127.
inline int32x4_t dots(int32x4_t sums, int8x16_t weights, int8x16_t codes) {
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(sums, weights, codes);
#else
    const int16x8_t low = vmull_s8(vget_low_s8(weights), vget_low_s8(codes)), high = vmull_high_s8(weights, codes);
    return vpadalq_s16(sums, vpaddq_s16(low, high));
#endif
}

// Adds sixteen products to four sums, whichever to which.
inline int32x4_t products(int32x4_t sums, int8x16_t weights, int8x16_t codes) {
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(sums, weights, codes);
#else
    return vpadalq_s16(sums, vmlal_high_s8(vmull_s8(vget_low_s8(weights), vget_low_s8(codes)), weights, codes));
#endif
}

// The same as `dots` with one group of four codes for all sums.
template <int Group>
inline int32x4_t dots_of(int32x4_t sums, int8x16_t weights, int8x16_t codes) {
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_laneq_s32(sums, weights, codes, Group);
#else
    return dots(sums, weights, vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(codes), Group)));
#endif
}

}  // namespace

#include "kernels_arm.inc"
#include "convolution.inc"
#include "delta.inc"

namespace mmedge {

#if defined(__ARM_FEATURE_MATMUL_INT8)
const Kernels& i8mm_kernels() {
    static constexpr Kernels found = {"i8mm", norm, gate, quantize, multiply, pack, rotate, keep, attend, look_up, convolve, unit, rates, move};
    return found;
}
#elif defined(__ARM_FEATURE_DOTPROD)
const Kernels& dotprod_kernels() {
    static constexpr Kernels found = {"dotprod", norm, gate, quantize, multiply, pack, rotate, keep, attend, look_up, convolve, unit, rates, move};
    return found;
}
#else
const Kernels& neon_kernels() {
    static constexpr Kernels found = {"neon", norm, gate, quantize, multiply, pack, rotate, keep, attend, look_up, convolve, unit, rates, move};
    return found;
}
#endif

}  // namespace mmedge
