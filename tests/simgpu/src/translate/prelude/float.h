// The host's functions of both precisions.
#define HOST(name)                                                                    \
  static inline float name(float x) { return __builtin_##name##f(x); }                \
  static inline double name(double x) { return __builtin_##name(x); }
HOST(fabs) HOST(sqrt) HOST(nearbyint) HOST(trunc) HOST(floor) HOST(ceil) HOST(exp2) HOST(log2) HOST(sin) HOST(cos) HOST(tanh)
#undef HOST
#define HOST(name)                                                                    \
  static inline float name(float x, float y) { return __builtin_##name##f(x, y); }    \
  static inline double name(double x, double y) { return __builtin_##name(x, y); }
HOST(copysign) HOST(nextafter)
#undef HOST
static inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
template <class T> static inline bool isnan(T x) { return x != x; }
template <class T> static inline bool isinf(T x) { return __builtin_isinf(x); }
template <class T> static inline bool isfinite(T x) { return __builtin_isfinite(x); }
template <class T> static inline bool signbit(T x) { return __builtin_signbit(x); }

// Floating-point instructions of PTX. A NaN's payload is the host's, except where an instruction makes a canonical one.

static inline __attribute__((always_inline)) float f32(uint32_t v) { return __builtin_bit_cast(float, v); }
static inline __attribute__((always_inline)) double f64(uint64_t v) { return __builtin_bit_cast(double, v); }
static inline __attribute__((always_inline)) uint32_t bits(float v) { return __builtin_bit_cast(uint32_t, v); }
static inline __attribute__((always_inline)) uint64_t bits(double v) { return __builtin_bit_cast(uint64_t, v); }
constexpr uint32_t NAN_F32 = 0x7fffffff;
constexpr uint16_t NAN_HALF = 0x7fff;

template <class T> static inline T ftz(T x) {
  return fabs(x) < std::numeric_limits<T>::min() ? copysign(T(0), x) : x;
}
// Into [0, 1]; a NaN becomes +0.
template <class T> static inline T sat(T x) { return x > 0 ? (x < 1 ? x : T(1)) : T(0); }

// ---- rounding modes other than to nearest, for float
enum Rounding { RN, RZ, RM, RP };
// `x` + `error` rounded to float, where `error` only says on which side of the double `x` the exact value lies.
template <Rounding R> static inline float narrow(double x, double error) {
  float f = float(x);
  if (R == RN || isnan(x) || (isinf(x) && error == 0)) return f;
  double above = double(f) - x;                 // an infinite f lies beyond a finite x
  int side = above > 0 ? 1 : above < 0 ? -1 : error < 0 ? 1 : error > 0 ? -1 : 0;
  bool down = R == RM || (R == RZ && x > 0);
  if (side > 0 && down) return nextafter(f, -__builtin_inff());
  if (side < 0 && !down) return nextafter(f, __builtin_inff());
  return f;
}
// What the rounded sum of two doubles leaves out.
static inline double sum_error(double a, double b, double sum) {
  double part = sum - a;
  return isfinite(sum) ? (a - (sum - part)) + (b - part) : 0;
}
template <Rounding R> static inline float zero_sum(float f, float a, float b) {
  // An exact zero from unlike signs is negative when rounding down.
  return R == RM && f == 0 && !(a == 0 && b == 0 && signbit(a) == signbit(b)) ? -0.f : f;
}
template <Rounding R> static inline float add(float a, float b) {
  double x = a, y = b, sum = x + y, error = sum_error(x, y, sum);
  float f = narrow<R>(sum, error);
  return sum == 0 && error == 0 ? zero_sum<R>(f, a, b) : f;
}
template <Rounding R> static inline float mul(float a, float b) { return narrow<R>(double(a) * b, 0); }
template <Rounding R> static inline float fma(float a, float b, float c) {
  double product = double(a) * b, z = c, sum = product + z, error = sum_error(product, z, sum);
  float f = narrow<R>(sum, error);
  return sum == 0 && error == 0 ? zero_sum<R>(f, float(product), c) : f;
}
template <Rounding R> static inline float div(float a, float b) {
  double x = double(a) / b;
  if (!isfinite(x) || x == 0) return float(x);
  return narrow<R>(x, fma(-x, double(b), double(a)) * (b < 0 ? -1 : 1));
}
template <Rounding R> static inline float sqrt(float a) {
  double x = sqrt(double(a));
  return narrow<R>(x, isfinite(x) ? fma(-x, x, double(a)) : 0);
}

// ---- comparisons and selections
template <class T> static inline bool unordered(T a, T b) { return a != a || b != b; }
template <class T> static inline T canonical_nan();
template <> inline float canonical_nan() { return f32(NAN_F32); }
template <> inline double canonical_nan() { return f64(0x7fffffffffffffff); }
// A NaN loses against a number; -0 is less than +0.
template <class T> static inline T min(T a, T b) {
  if (a != a) return b != b ? canonical_nan<T>() : b;
  if (b != b) return a;
  return a < b || (a == b && signbit(a)) ? a : b;
}
template <class T> static inline T max(T a, T b) {
  if (a != a) return b != b ? canonical_nan<T>() : b;
  if (b != b) return a;
  return a > b || (a == b && !signbit(a)) ? a : b;
}
template <class T> static inline T min_nan(T a, T b) { return unordered(a, b) ? canonical_nan<T>() : min(a, b); }
template <class T> static inline T max_nan(T a, T b) { return unordered(a, b) ? canonical_nan<T>() : max(a, b); }
// The result of min or max of magnitudes takes the product's sign.
template <class T> static inline T xorsign(T magnitude, T a, T b) {
  return copysign(magnitude, signbit(a) != signbit(b) ? T(-1) : T(1));
}
template <class T> static inline bool is_subnormal(T x) { return x != 0 && fabs(x) < std::numeric_limits<T>::min(); }
template <class T> static inline bool is_normal(T x) { return __builtin_isnormal(x); }

// ---- approximations: here as good as the host's functions
static inline float div_approx(float a, float b) {
  bool huge = fabs(b) > 0x1p126f && isfinite(b);   // the reciprocal is flushed to zero
  return huge ? (isinf(a) || a != a ? f32(NAN_F32) : copysign(0.f, a) * copysign(1.f, b)) : a / b;
}
static inline float rsqrt(float x) { return float(1 / sqrt(double(x))); }
// The f64 approximations give the upper half of the bits.
static inline double upper_half(double x) { return f64(bits(x) >> 32 << 32); }
static inline double rcp_approx(double x) { return upper_half(ftz(1 / ftz(x))); }
static inline double rsqrt_approx(double x) { return upper_half(1 / sqrt(ftz(x))); }
static inline float ex2(float x) { return exp2(x); }
static inline float lg2(float x) { return log2(x); }

// ---- half precision: values are bits
struct F16 {
  static constexpr int precision = 11, emin = -14;
  static constexpr uint16_t infinity = 0x7c00;
};
struct Bf16 {
  static constexpr int precision = 8, emin = -126;
  static constexpr uint16_t infinity = 0x7f80;
};
template <class H> static inline float widen(uint16_t h) {
  if constexpr (std::is_same_v<H, Bf16>) return f32(uint32_t(h) << 16);
  uint32_t exponent = h >> 10 & 31, fraction = h & 0x3ff;
  float magnitude = exponent == 31  ? f32(0x7f800000 | fraction << 13)
                    : exponent == 0 ? float(fraction) * 0x1p-24f
                                    : f32((exponent + 112) << 23 | fraction << 13);
  return h & 0x8000 ? -magnitude : magnitude;
}
// `x` + `error` (a side, as in `narrow`) rounded to half precision.
template <class H, Rounding R = RN> static inline uint16_t round_half(double x, double error = 0) {
  if (x != x) return NAN_HALF;
  uint16_t sign = signbit(x) ? 0x8000 : 0;
  if (isinf(x)) return sign | H::infinity;
  if (x == 0) return sign;
  double magnitude = fabs(x), beyond = sign ? -error : error;
  int exponent = greatest(__builtin_ilogb(magnitude), H::emin);
  double units = __builtin_ldexp(magnitude, H::precision - 1 - exponent), whole = floor(units), rest = units - whole;
  bool inexact = rest != 0 || beyond != 0;
  if (rest == 0 && beyond < 0) whole -= 1, rest = 1;         // just under a whole number of units
  bool up = R == RN   ? rest > 0.5 || (rest == 0.5 && (beyond > 0 || (beyond == 0 && __builtin_fmod(whole, 2) == 1)))
            : R == RP ? inexact && !sign
            : R == RM ? inexact && sign
                      : false;
  // Units counted on from the bits of the smallest number of this exponent carry into the exponent by themselves.
  int64_t pattern = int64_t(whole) + up + (int64_t(exponent - H::emin) << (H::precision - 1));
  if (pattern >= H::infinity) {
    bool to_infinity = R == RN || (R == RP && !sign) || (R == RM && sign);
    return sign | (to_infinity ? H::infinity : H::infinity - 1);
  }
  return sign | uint16_t(pattern);
}
// The conversions kernels are full of.
static inline uint16_t bf16_rn(float f) {
  uint32_t u = bits(f);
  return f != f ? NAN_HALF : uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
static inline uint16_t f16_rn(float f) { return f != f ? NAN_HALF : __builtin_bit_cast(uint16_t, _Float16(f)); }
template <class H> static inline uint16_t half_fma(uint16_t a, uint16_t b, uint16_t c) {
  double product = double(widen<H>(a)) * widen<H>(b), z = widen<H>(c), sum = product + z;
  return round_half<H>(sum, sum_error(product, z, sum));
}
template <class H> static inline uint16_t half_add(uint16_t a, uint16_t b) {
  double x = widen<H>(a), y = widen<H>(b), sum = x + y;
  return round_half<H>(sum, sum_error(x, y, sum));
}
template <class H> static inline uint16_t half_neg(uint16_t a) { return a ^ 0x8000; }
template <class H> static inline uint16_t half_abs(uint16_t a) { return a & 0x7fff; }
template <class H> static inline uint16_t half_sub(uint16_t a, uint16_t b) { return half_add<H>(a, half_neg<H>(b)); }
template <class H> static inline uint16_t half_mul(uint16_t a, uint16_t b) {
  return round_half<H>(double(widen<H>(a)) * widen<H>(b));
}
template <class H> static inline uint16_t half_min(uint16_t a, uint16_t b) { return round_half<H>(min(widen<H>(a), widen<H>(b))); }
template <class H> static inline uint16_t half_max(uint16_t a, uint16_t b) { return round_half<H>(max(widen<H>(a), widen<H>(b))); }
template <class H> static inline uint16_t half_min_nan(uint16_t a, uint16_t b) {
  return round_half<H>(min_nan(widen<H>(a), widen<H>(b)));
}
template <class H> static inline uint16_t half_max_nan(uint16_t a, uint16_t b) {
  return round_half<H>(max_nan(widen<H>(a), widen<H>(b)));
}
template <class H> static inline uint16_t half_ex2(uint16_t a) { return round_half<H>(exp2(widen<H>(a))); }
template <class H> static inline uint16_t half_tanh(uint16_t a) { return round_half<H>(tanh(widen<H>(a))); }
// Subnormals (of half precision) to zero.
template <class H> static inline uint16_t half_ftz(uint16_t a) {
  return (a & 0x7fff) < (1 << (H::precision - 1)) ? a & 0x8000 : a;
}
template <class H> static inline uint16_t half_sat(uint16_t a) { return round_half<H>(sat(widen<H>(a))); }
template <class H> static inline uint16_t half_relu(uint16_t a) {
  return (a & 0x7fff) > H::infinity ? NAN_HALF : a & 0x8000 ? 0 : a;
}
static inline uint32_t pair(uint16_t lower, uint16_t upper) { return uint32_t(upper) << 16 | lower; }
template <class F, class... A> static inline uint32_t both(F f, A... values) {
  return pair(f(uint16_t(values)...), f(uint16_t(values >> 16)...));
}
