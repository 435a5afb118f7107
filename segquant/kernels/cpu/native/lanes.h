// Vectors of a tile: 512 bits with VNNI, else 256; and what tiles do with them.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <utility>

namespace segquant {

#define SEGQUANT_INLINE inline __attribute__((always_inline))
// Of a loop's function: all that it calls is part of it, or sums are in memory (three times as slow).
#define SEGQUANT_WHOLE __attribute__((flatten))

// f(0), f(1) … f(N - 1), each with a constant: unrolled, so that arrays stay in registers.
template <int N, class F>
SEGQUANT_INLINE void each(F f) {
  [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
    (f(std::integral_constant<int, i>{}), ...);
  }(std::make_integer_sequence<int, N>{});
}

// SEGQUANT_BYTES does without the instruction, for tests.
#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && !defined(SEGQUANT_BYTES)
#define SEGQUANT_WIDE
#endif
#if defined(SEGQUANT_WIDE) || defined(SEGQUANT_BYTES) || defined(__AVXVNNI__)
constexpr bool kProductsOfBytes = true;  // of u8 and s8, four added in 32 bits
#else
constexpr bool kProductsOfBytes = false;
#endif

// Pairs of bfloat16; SEGQUANT_FLOATS does without, for tests.
#if defined(SEGQUANT_WIDE) && defined(__AVX512BF16__) && !defined(SEGQUANT_FLOATS)
#define SEGQUANT_BFLOATS
constexpr bool kProductsOfBfloats = true;  // two added in float32
#else
constexpr bool kProductsOfBfloats = false;
#endif

#if defined(SEGQUANT_WIDE)
using Ints = __m512i;
using Floats = __m512;
constexpr int kVectors = 4;  // of a panel's columns: with six rows, 24 of the 32 registers are sums
SEGQUANT_INLINE Ints no_ints() { return _mm512_setzero_si512(); }
SEGQUANT_INLINE Floats no_floats() { return _mm512_setzero_ps(); }
SEGQUANT_INLINE Ints all_ints(int32_t x) { return _mm512_set1_epi32(x); }
SEGQUANT_INLINE Ints all_shorts(int16_t x) { return _mm512_set1_epi16(x); }
SEGQUANT_INLINE Floats all_floats(float x) { return _mm512_set1_ps(x); }
SEGQUANT_INLINE Ints load_ints(const void* at) { return _mm512_loadu_si512(at); }
SEGQUANT_INLINE Ints load_shorts(const int8_t* at) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
}
SEGQUANT_INLINE Floats load_floats(const float* at) { return _mm512_loadu_ps(at); }
SEGQUANT_INLINE void store_ints(void* at, Ints x) { _mm512_storeu_si512(at, x); }
SEGQUANT_INLINE void store_floats(float* at, Floats x) { _mm512_storeu_ps(at, x); }
SEGQUANT_INLINE Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
SEGQUANT_INLINE Floats bits_as_floats(Ints x) { return _mm512_castsi512_ps(x); }
SEGQUANT_INLINE Ints floats_as_bits(Floats x) { return _mm512_castps_si512(x); }
SEGQUANT_INLINE Ints plus(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
SEGQUANT_INLINE Ints minus(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
SEGQUANT_INLINE Ints times(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
SEGQUANT_INLINE Floats times(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
SEGQUANT_INLINE Floats plus(Floats a, Floats b) { return _mm512_add_ps(a, b); }
SEGQUANT_INLINE Floats plus_product(Floats sum, Floats a, Floats b) { return _mm512_fmadd_ps(a, b, sum); }
SEGQUANT_INLINE Floats less_product(Floats sum, Floats a, Floats b) { return _mm512_fnmadd_ps(a, b, sum); }
SEGQUANT_INLINE Ints pairs(Ints a, Ints b) { return _mm512_madd_epi16(a, b); }     // of s16, to s32
SEGQUANT_INLINE Ints quads(Ints a, Ints b) { return _mm512_maddubs_epi16(a, b); }  // of u8 and s8, to s16
template <int Byte>
SEGQUANT_INLINE Ints byte_of(Ints words) {  // a word's byte, with its sign
  return _mm512_srai_epi32(_mm512_slli_epi32(words, 24 - 8 * Byte), 24);
}
SEGQUANT_INLINE Ints most(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
SEGQUANT_INLINE Ints least(Ints a, Ints b) { return _mm512_min_epi32(a, b); }
SEGQUANT_INLINE Floats most(Floats a, Floats b) { return _mm512_max_ps(a, b); }
SEGQUANT_INLINE Floats least(Floats a, Floats b) { return _mm512_min_ps(a, b); }
SEGQUANT_INLINE Floats minus(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
SEGQUANT_INLINE Floats divided(Floats a, Floats b) { return _mm512_div_ps(a, b); }
SEGQUANT_INLINE Floats magnitude(Floats a) { return _mm512_abs_ps(a); }
SEGQUANT_INLINE Floats nearest(Floats a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
SEGQUANT_INLINE Ints to_ints(Floats a) { return _mm512_cvtps_epi32(a); }
SEGQUANT_INLINE Ints to_exponent(Ints a) { return _mm512_slli_epi32(a, 23); }
SEGQUANT_INLINE Ints both(Ints a, Ints b) { return _mm512_and_si512(a, b); }
template <int Bits>
SEGQUANT_INLINE Ints up(Ints a) { return _mm512_slli_epi32(a, Bits); }
template <int Bits>
SEGQUANT_INLINE Ints down(Ints a) { return _mm512_srai_epi32(a, Bits); }
SEGQUANT_INLINE float highest(Floats a) { return _mm512_reduce_max_ps(a); }
SEGQUANT_INLINE Floats by_sign(Floats x, Floats above, Floats below) {  // below where x has the sign bit
  return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(x)), above, below);
}
SEGQUANT_INLINE bool any_not_below(Floats a, float limit) {
  return _mm512_cmp_ps_mask(a, all_floats(limit), _CMP_NLT_UQ) != 0;
}
using Flags = __mmask16;
SEGQUANT_INLINE Flags no_flags() { return 0; }
SEGQUANT_INLINE Flags or_nan(Flags flags, Floats a) { return flags | _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
SEGQUANT_INLINE bool any(Flags flags) { return flags != 0; }
SEGQUANT_INLINE void store_codes(Ints codes, uint8_t* out) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(codes));
}
SEGQUANT_INLINE void store_codes(Ints codes, int8_t* out) { store_codes(codes, reinterpret_cast<uint8_t*>(out)); }
SEGQUANT_INLINE void store_codes(Ints codes, int16_t* out) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi32_epi16(codes));
}
SEGQUANT_INLINE Floats load_floats(const uint16_t* at) {  // bfloat16
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
#define SEGQUANT_REGISTER "v"
#else
using Ints = __m256i;
using Floats = __m256;
constexpr int kVectors = 2;  // with six rows, 12 of the 16 registers are sums
SEGQUANT_INLINE Ints no_ints() { return _mm256_setzero_si256(); }
SEGQUANT_INLINE Floats no_floats() { return _mm256_setzero_ps(); }
SEGQUANT_INLINE Ints all_ints(int32_t x) { return _mm256_set1_epi32(x); }
SEGQUANT_INLINE Ints all_shorts(int16_t x) { return _mm256_set1_epi16(x); }
SEGQUANT_INLINE Floats all_floats(float x) { return _mm256_set1_ps(x); }
SEGQUANT_INLINE Ints load_ints(const void* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }
SEGQUANT_INLINE Ints load_shorts(const int8_t* at) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}
SEGQUANT_INLINE Floats load_floats(const float* at) { return _mm256_loadu_ps(at); }
SEGQUANT_INLINE void store_ints(void* at, Ints x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), x); }
SEGQUANT_INLINE void store_floats(float* at, Floats x) { _mm256_storeu_ps(at, x); }
SEGQUANT_INLINE Floats to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }
SEGQUANT_INLINE Floats bits_as_floats(Ints x) { return _mm256_castsi256_ps(x); }
SEGQUANT_INLINE Ints floats_as_bits(Floats x) { return _mm256_castps_si256(x); }
SEGQUANT_INLINE Ints plus(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
SEGQUANT_INLINE Ints minus(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
SEGQUANT_INLINE Ints times(Ints a, Ints b) { return _mm256_mullo_epi32(a, b); }
SEGQUANT_INLINE Floats times(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
SEGQUANT_INLINE Floats plus(Floats a, Floats b) { return _mm256_add_ps(a, b); }
SEGQUANT_INLINE Floats plus_product(Floats sum, Floats a, Floats b) { return _mm256_fmadd_ps(a, b, sum); }
SEGQUANT_INLINE Floats less_product(Floats sum, Floats a, Floats b) { return _mm256_fnmadd_ps(a, b, sum); }
SEGQUANT_INLINE Ints pairs(Ints a, Ints b) { return _mm256_madd_epi16(a, b); }     // of s16, to s32
SEGQUANT_INLINE Ints quads(Ints a, Ints b) { return _mm256_maddubs_epi16(a, b); }  // of u8 and s8, to s16
template <int Byte>
SEGQUANT_INLINE Ints byte_of(Ints words) {  // a word's byte, with its sign
  return _mm256_srai_epi32(_mm256_slli_epi32(words, 24 - 8 * Byte), 24);
}
SEGQUANT_INLINE Ints most(Ints a, Ints b) { return _mm256_max_epi32(a, b); }
SEGQUANT_INLINE Ints least(Ints a, Ints b) { return _mm256_min_epi32(a, b); }
SEGQUANT_INLINE Floats most(Floats a, Floats b) { return _mm256_max_ps(a, b); }
SEGQUANT_INLINE Floats least(Floats a, Floats b) { return _mm256_min_ps(a, b); }
SEGQUANT_INLINE Floats minus(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
SEGQUANT_INLINE Floats divided(Floats a, Floats b) { return _mm256_div_ps(a, b); }
SEGQUANT_INLINE Floats magnitude(Floats a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
SEGQUANT_INLINE Floats nearest(Floats a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
SEGQUANT_INLINE Ints to_ints(Floats a) { return _mm256_cvtps_epi32(a); }
SEGQUANT_INLINE Ints to_exponent(Ints a) { return _mm256_slli_epi32(a, 23); }
SEGQUANT_INLINE Ints both(Ints a, Ints b) { return _mm256_and_si256(a, b); }
template <int Bits>
SEGQUANT_INLINE Ints up(Ints a) { return _mm256_slli_epi32(a, Bits); }
template <int Bits>
SEGQUANT_INLINE Ints down(Ints a) { return _mm256_srai_epi32(a, Bits); }
SEGQUANT_INLINE float highest(Floats a) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}
SEGQUANT_INLINE Floats by_sign(Floats x, Floats above, Floats below) {  // below where x has the sign bit
  return _mm256_blendv_ps(above, below, x);
}
SEGQUANT_INLINE bool any_not_below(Floats a, float limit) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a, all_floats(limit), _CMP_NLT_UQ)) != 0;
}
using Flags = __m256;
SEGQUANT_INLINE Flags no_flags() { return _mm256_setzero_ps(); }
SEGQUANT_INLINE Flags or_nan(Flags flags, Floats a) { return _mm256_or_ps(flags, _mm256_cmp_ps(a, a, _CMP_UNORD_Q)); }
SEGQUANT_INLINE bool any(Flags flags) { return _mm256_movemask_ps(flags) != 0; }
SEGQUANT_INLINE void store_codes(Ints codes, int16_t* out) {
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(codes, codes), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_castsi256_si128(packed));
}
SEGQUANT_INLINE void store_codes(Ints codes, int8_t* out) {
  const __m256i half = _mm256_permute4x64_epi64(_mm256_packs_epi32(codes, codes), 0x08);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_packs_epi16(_mm256_castsi256_si128(half), _mm_setzero_si128()));
}
SEGQUANT_INLINE void store_codes(Ints codes, uint8_t* out) {
  const __m256i half = _mm256_permute4x64_epi64(_mm256_packs_epi32(codes, codes), 0x08);
  const __m128i packed = _mm_packus_epi16(_mm256_castsi256_si128(half), _mm_setzero_si128());
  _mm_storel_epi64(reinterpret_cast<__m128i*>(out), packed);
}
SEGQUANT_INLINE Floats load_floats(const uint16_t* at) {  // bfloat16
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
#define SEGQUANT_REGISTER "x"
#endif

constexpr int kLanes = sizeof(Ints) / 4;
constexpr int kColumns = kLanes * kVectors;  // outputs of a panel
constexpr int kRows = 6;                     // tokens of a tile

// sum += x by an instruction that compilers neither move nor split: intrinsics alone end with sums in memory.
SEGQUANT_INLINE void add32(Ints& sum, Ints x) {
  asm("vpaddd %1, %0, %0" : "+" SEGQUANT_REGISTER(sum) : SEGQUANT_REGISTER(x));
}
SEGQUANT_INLINE void add16(Ints& sum, Ints x) {
  asm("vpaddw %1, %0, %0" : "+" SEGQUANT_REGISTER(sum) : SEGQUANT_REGISTER(x));
}
SEGQUANT_INLINE void add_product(Floats& sum, Floats a, Floats b) {
  asm("vfmadd231ps %2, %1, %0" : "+" SEGQUANT_REGISTER(sum) : SEGQUANT_REGISTER(a), SEGQUANT_REGISTER(b));
}

#if defined(SEGQUANT_BFLOATS)
// sum += Σ of two products of bfloat16, in float32.
SEGQUANT_INLINE void dot_bfloats(Ints& sum, Ints a, Ints b) { asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b)); }
#endif

// sum += Σ of four products of u8 and s8, in 32 bits.
SEGQUANT_INLINE void dot_bytes(Ints& sum, Ints a, Ints b) {
#if defined(SEGQUANT_WIDE)
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#elif defined(__AVXVNNI__) && !defined(SEGQUANT_BYTES)
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
#else
  add32(sum, pairs(_mm256_and_si256(a, all_shorts(255)), _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8)));
  add32(sum, pairs(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8)));
#endif
}

}  // namespace segquant
