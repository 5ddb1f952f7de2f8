// Eight float32 lanes in plain C++, with the same results as the vector instructions, bit for bit.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int ABREAST = 4;  // how many eights of positions or components three queries have registers for

inline float half_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16, exponent = (half >> 10) & 0x1Fu, fraction = half & 0x3FFu;
    if (exponent == 0) {  // zero or subnormal: fraction · 2⁻²⁴
        const float size = static_cast<float>(fraction) * 0x1p-24f;
        return sign ? -size : size;
    }
    const uint32_t bits = sign | (exponent == 31 ? 0x7F800000u : (exponent + 112) << 23) | (fraction << 13);
    float found;
    std::memcpy(&found, &bits, sizeof found);
    return found;
}

// The nearest, ties to even.
inline uint16_t float_to_half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000u, size = bits & 0x7FFFFFFFu;
    if (size > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u | (size >> 13 & 0x3FFu));  // not a number
    if (size >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);                        // nearer to 2¹⁶ than to 65504
    if (size < 0x38800000u) {  // below 2⁻¹⁴: what is left beside 1/2 is a multiple of 2⁻²⁴
        const float beside = __builtin_fabsf(value) + 0.5f;
        std::memcpy(&bits, &beside, sizeof bits);
        return static_cast<uint16_t>(sign | (bits - 0x3F000000u));
    }
    return static_cast<uint16_t>(sign | ((size + 0xFFFu + (size >> 13 & 1u) - 0x38000000u) >> 13));
}

struct F8 {
    float v[8];
    static F8 load(const float* from) {
        F8 found;
        std::memcpy(found.v, from, sizeof found.v);
        return found;
    }
    static F8 load(const uint16_t* halves) {
        F8 found;
        for (int lane = 0; lane < 8; ++lane) found.v[lane] = half_to_float(halves[lane]);
        return found;
    }
    static F8 load(const int8_t* codes) {
        F8 found;
        for (int lane = 0; lane < 8; ++lane) found.v[lane] = static_cast<float>(codes[lane]);
        return found;
    }
    static F8 all(float value) {
        F8 found;
        for (float& lane : found.v) lane = value;
        return found;
    }
    void store(float* to) const { std::memcpy(to, v, sizeof v); }
    void store(uint16_t* halves) const {
        for (int lane = 0; lane < 8; ++lane) halves[lane] = float_to_half(v[lane]);
    }
};

template <typename Operation>
inline F8 by_lane(const F8& a, const F8& b, Operation operation) {
    F8 found;
    for (int lane = 0; lane < 8; ++lane) found.v[lane] = operation(a.v[lane], b.v[lane]);
    return found;
}

inline F8 operator+(F8 a, F8 b) { return by_lane(a, b, [](float x, float y) { return x + y; }); }
inline F8 operator-(F8 a, F8 b) { return by_lane(a, b, [](float x, float y) { return x - y; }); }
inline F8 operator*(F8 a, F8 b) { return by_lane(a, b, [](float x, float y) { return x * y; }); }
inline F8 operator/(F8 a, F8 b) { return by_lane(a, b, [](float x, float y) { return x / y; }); }
inline F8 max(F8 a, F8 b) { return by_lane(a, b, [](float x, float y) { return x > y ? x : y; }); }
inline F8 min(F8 a, F8 b) { return by_lane(a, b, [](float x, float y) { return x < y ? x : y; }); }

inline F8 fma(F8 a, F8 b, F8 c) {
    F8 found;
    for (int lane = 0; lane < 8; ++lane) found.v[lane] = __builtin_fmaf(a.v[lane], b.v[lane], c.v[lane]);
    return found;
}

inline F8 magnitude(F8 a) {
    for (float& lane : a.v) lane = __builtin_fabsf(lane);
    return a;
}

inline F8 nearest(F8 a) {
    for (float& lane : a.v) lane = __builtin_rintf(lane);
    return a;
}

// a · 2ⁿ for whole n from -126 to 127
inline F8 scaled(F8 a, F8 n) {
    for (int lane = 0; lane < 8; ++lane) {
        const uint32_t power = static_cast<uint32_t>(static_cast<int32_t>(n.v[lane]) + 127) << 23;
        float factor;
        std::memcpy(&factor, &power, sizeof factor);
        a.v[lane] *= factor;
    }
    return a;
}

// 1 where a ≥ b, and 0 elsewhere
inline F8 at_least(F8 a, F8 b) { return by_lane(a, b, [](float x, float y) { return x >= y ? 1.0f : 0.0f; }); }

// a in lanes from `first` to `end` - 1, b elsewhere
inline F8 between(F8 a, F8 b, int32_t first, int32_t end) {
    for (int lane = 0; lane < 8; ++lane)
        if (lane < first || lane >= end) a.v[lane] = b.v[lane];
    return a;
}

// ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7))
inline float sum(F8 a) {
    const float* v = a.v;
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

inline float largest(F8 a) {
    float found = a.v[0];
    for (float lane : a.v) found = lane > found ? lane : found;
    return found;
}

}  // namespace
