// Eight float32 lanes in two registers of NEON, with the same results as the lanes in plain C++, bit for bit.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace {

constexpr int ABREAST = 2;  // how many eights of positions or components three queries have registers for

struct F8 {
    float32x4_t low, high;
    static F8 load(const float* from) { return {vld1q_f32(from), vld1q_f32(from + 4)}; }
    static F8 load(const uint16_t* halves) {
        const float16x8_t some = vreinterpretq_f16_u16(vld1q_u16(halves));
        return {vcvt_f32_f16(vget_low_f16(some)), vcvt_high_f32_f16(some)};
    }
    static F8 load(const int8_t* codes) {
        const int16x8_t some = vmovl_s8(vld1_s8(codes));
        return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(some))), vcvtq_f32_s32(vmovl_high_s16(some))};
    }
    static F8 all(float value) { return {vdupq_n_f32(value), vdupq_n_f32(value)}; }
    void store(float* to) const {
        vst1q_f32(to, low);
        vst1q_f32(to + 4, high);
    }
    void store(uint16_t* halves) const { vst1q_u16(halves, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(low), high))); }
    friend F8 operator+(F8 a, F8 b) { return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
    friend F8 operator-(F8 a, F8 b) { return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)}; }
    friend F8 operator*(F8 a, F8 b) { return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
    friend F8 operator/(F8 a, F8 b) { return {vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)}; }
};

// The larger and the smaller; b where a is not a number or both are zero, which NEON's own instructions see differently.
inline float32x4_t larger(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline float32x4_t smaller(float32x4_t a, float32x4_t b) { return vbslq_f32(vcltq_f32(a, b), a, b); }

inline F8 fma(F8 a, F8 b, F8 c) { return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)}; }
inline F8 max(F8 a, F8 b) { return {larger(a.low, b.low), larger(a.high, b.high)}; }
inline F8 min(F8 a, F8 b) { return {smaller(a.low, b.low), smaller(a.high, b.high)}; }
inline F8 magnitude(F8 a) { return {vabsq_f32(a.low), vabsq_f32(a.high)}; }
inline F8 nearest(F8 a) { return {vrndnq_f32(a.low), vrndnq_f32(a.high)}; }

// a · 2ⁿ for whole n from -126 to 127
inline float32x4_t scaled(float32x4_t a, float32x4_t n) {
    const int32x4_t power = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
    return vmulq_f32(a, vreinterpretq_f32_s32(power));
}
inline F8 scaled(F8 a, F8 n) { return {scaled(a.low, n.low), scaled(a.high, n.high)}; }

// 1 where a ≥ b, and 0 elsewhere
inline float32x4_t at_least(float32x4_t a, float32x4_t b) {
    return vreinterpretq_f32_u32(vandq_u32(vcgeq_f32(a, b), vreinterpretq_u32_f32(vdupq_n_f32(1.0f))));
}
inline F8 at_least(F8 a, F8 b) { return {at_least(a.low, b.low), at_least(a.high, b.high)}; }

// a in lanes from `first` to `end` - 1, b elsewhere
inline F8 between(F8 a, F8 b, int32_t first, int32_t end) {
    static constexpr int32_t LANES[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    auto some = [&](float32x4_t x, float32x4_t y, int32x4_t lane) {
        const uint32x4_t inside = vandq_u32(vcgeq_s32(lane, vdupq_n_s32(first)), vcltq_s32(lane, vdupq_n_s32(end)));
        return vbslq_f32(inside, x, y);
    };
    return {some(a.low, b.low, vld1q_s32(LANES)), some(a.high, b.high, vld1q_s32(LANES + 4))};
}

// ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7))
inline float sum(F8 a) {
    const float32x4_t half = vaddq_f32(a.low, a.high);
    return vpadds_f32(vadd_f32(vget_low_f32(half), vget_high_f32(half)));
}

inline float largest(F8 a) {
    float32x4_t half = larger(a.high, a.low);
    half = larger(vextq_f32(half, half, 2), half);
    half = larger(vextq_f32(half, half, 1), half);
    return vgetq_lane_f32(half, 0);
}

inline float half_to_float(uint16_t half) {
    __fp16 found;
    std::memcpy(&found, &half, sizeof found);
    return static_cast<float>(found);
}

}  // namespace
