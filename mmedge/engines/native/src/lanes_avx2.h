// Eight float32 lanes with AVX2 and FMA.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

constexpr int ABREAST = 4;  // how many eights of positions or components three queries have registers for

struct F8 {
    __m256 v;
    static F8 load(const float* from) { return {_mm256_loadu_ps(from)}; }
    static F8 load(const uint16_t* halves) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)))}; }
    static F8 load(const int8_t* codes) {
        return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes))))};
    }
    static F8 all(float value) { return {_mm256_set1_ps(value)}; }
    void store(float* to) const { _mm256_storeu_ps(to, v); }
    void store(uint16_t* halves) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(halves), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
    friend F8 operator+(F8 a, F8 b) { return {_mm256_add_ps(a.v, b.v)}; }
    friend F8 operator-(F8 a, F8 b) { return {_mm256_sub_ps(a.v, b.v)}; }
    friend F8 operator*(F8 a, F8 b) { return {_mm256_mul_ps(a.v, b.v)}; }
    friend F8 operator/(F8 a, F8 b) { return {_mm256_div_ps(a.v, b.v)}; }
};

inline F8 fma(F8 a, F8 b, F8 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline F8 max(F8 a, F8 b) { return {_mm256_max_ps(a.v, b.v)}; }
inline F8 min(F8 a, F8 b) { return {_mm256_min_ps(a.v, b.v)}; }
inline F8 magnitude(F8 a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline F8 nearest(F8 a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }

// a · 2ⁿ for whole n from -126 to 127
inline F8 scaled(F8 a, F8 n) {
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127)), 23);
    return {_mm256_mul_ps(a.v, _mm256_castsi256_ps(power))};
}

// 1 where a ≥ b, and 0 elsewhere
inline F8 at_least(F8 a, F8 b) { return {_mm256_and_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ), _mm256_set1_ps(1.0f))}; }

// a in lanes from `first` to `end` - 1, b elsewhere
inline F8 between(F8 a, F8 b, int32_t first, int32_t end) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(first), lane);
    const __m256i inside = _mm256_andnot_si256(below, _mm256_cmpgt_epi32(_mm256_set1_epi32(end), lane));
    return {_mm256_blendv_ps(b.v, a.v, _mm256_castsi256_ps(inside))};
}

// ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7))
inline float sum(F8 a) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

inline float largest(F8 a) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

inline float half_to_float(uint16_t half) { return _cvtsh_ss(half); }

}  // namespace
