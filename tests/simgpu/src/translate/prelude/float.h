// Floating-point instructions of PTX. A NaN's payload is the host's, except where an instruction makes a
// canonical one.

// The host's functions, of both precisions.
#define HOST(name)                                                                                           \
    inline float name(float x) { return __builtin_##name##f(x); }                                            \
    inline double name(double x) { return __builtin_##name(x); }
HOST(fabs);
HOST(sqrt);
HOST(nearbyint);
HOST(trunc);
HOST(floor);
HOST(ceil);
HOST(exp2);
HOST(log2);
HOST(sin);
HOST(cos);
HOST(tanh);
#undef HOST
inline float copysign(float x, float y) { return __builtin_copysignf(x, y); }
inline double copysign(double x, double y) { return __builtin_copysign(x, y); }
inline float nextafter(float x, float y) { return __builtin_nextafterf(x, y); }
inline double nextafter(double x, double y) { return __builtin_nextafter(x, y); }
inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
template <class T> inline bool isnan(T x) { return x != x; }
template <class T> inline bool isinf(T x) { return __builtin_isinf(x); }
template <class T> inline bool isfinite(T x) { return __builtin_isfinite(x); }
template <class T> inline bool signbit(T x) { return __builtin_signbit(x); }

[[gnu::always_inline]] inline float f32(uint32_t v) { return __builtin_bit_cast(float, v); }
[[gnu::always_inline]] inline double f64(uint64_t v) { return __builtin_bit_cast(double, v); }
[[gnu::always_inline]] inline uint32_t bits(float v) { return __builtin_bit_cast(uint32_t, v); }
[[gnu::always_inline]] inline uint64_t bits(double v) { return __builtin_bit_cast(uint64_t, v); }
constexpr uint32_t NAN_F32 = 0x7fffffff;
constexpr uint16_t NAN_HALF = 0x7fff;

template <class T> inline T ftz(T x)
{
    return fabs(x) < std::numeric_limits<T>::min() ? copysign(T(0), x) : x;
}
// Into [0, 1]; a NaN becomes +0.
template <class T> inline T sat(T x) { return x > 0 ? (x < 1 ? x : T(1)) : T(0); }

// ---- rounding modes other than to nearest, for float
enum Rounding { RN, RZ, RM, RP };
// `x` + `error` rounded to float, where `error` only says on which side of the double `x` the exact value
// lies.
template <Rounding R> inline float narrow(double x, double error)
{
    float f = float(x);
    if (R == RN || isnan(x) || (isinf(x) && error == 0)) return f;
    double above = double(f) - x; // an infinite f lies beyond a finite x
    int side = above > 0 ? 1 : above < 0 ? -1 : error < 0 ? 1 : error > 0 ? -1 : 0;
    bool down = R == RM || (R == RZ && x > 0);
    if (side > 0 && down) return nextafter(f, -__builtin_inff());
    if (side < 0 && !down) return nextafter(f, __builtin_inff());
    return f;
}
// What the rounded sum of two doubles leaves out.
inline double sum_error(double a, double b, double sum)
{
    double part = sum - a;
    return isfinite(sum) ? (a - (sum - part)) + (b - part) : 0;
}
template <Rounding R> inline float zero_sum(float f, float a, float b)
{
    // An exact zero from unlike signs is negative when rounding down.
    return R == RM && f == 0 && !(a == 0 && b == 0 && signbit(a) == signbit(b)) ? -0.f : f;
}
template <Rounding R> inline float add(float a, float b)
{
    double x = a, y = b, sum = x + y, error = sum_error(x, y, sum);
    float f = narrow<R>(sum, error);
    return sum == 0 && error == 0 ? zero_sum<R>(f, a, b) : f;
}
template <Rounding R> inline float mul(float a, float b) { return narrow<R>(double(a) * b, 0); }
template <Rounding R> inline float fma(float a, float b, float c)
{
    double product = double(a) * b, z = c, sum = product + z, error = sum_error(product, z, sum);
    float f = narrow<R>(sum, error);
    return sum == 0 && error == 0 ? zero_sum<R>(f, float(product), c) : f;
}
template <Rounding R> inline float div(float a, float b)
{
    double x = double(a) / b;
    if (!isfinite(x) || x == 0) return float(x);
    return narrow<R>(x, fma(-x, double(b), double(a)) * (b < 0 ? -1 : 1));
}
template <Rounding R> inline float sqrt(float a)
{
    double x = sqrt(double(a));
    return narrow<R>(x, isfinite(x) ? fma(-x, x, double(a)) : 0);
}

// ---- comparisons and selections
template <class T> inline bool unordered(T a, T b) { return a != a || b != b; }
template <class T> inline T canonical_nan();
template <> inline float canonical_nan() { return f32(NAN_F32); }
template <> inline double canonical_nan() { return f64(0x7fffffffffffffff); }
// A NaN loses against a number; -0 is less than +0.
template <class T> inline T min(T a, T b)
{
    if (a != a) return b != b ? canonical_nan<T>() : b;
    if (b != b) return a;
    return a < b || (a == b && signbit(a)) ? a : b;
}
template <class T> inline T max(T a, T b)
{
    if (a != a) return b != b ? canonical_nan<T>() : b;
    if (b != b) return a;
    return a > b || (a == b && !signbit(a)) ? a : b;
}
template <class T> inline T min_nan(T a, T b) { return unordered(a, b) ? canonical_nan<T>() : min(a, b); }
template <class T> inline T max_nan(T a, T b) { return unordered(a, b) ? canonical_nan<T>() : max(a, b); }
// The result of min or max of magnitudes takes the product's sign.
template <class T> inline T xorsign(T magnitude, T a, T b)
{
    return copysign(magnitude, signbit(a) != signbit(b) ? T(-1) : T(1));
}
template <class T> inline bool is_subnormal(T x) { return x != 0 && fabs(x) < std::numeric_limits<T>::min(); }
template <class T> inline bool is_normal(T x) { return __builtin_isnormal(x); }

// ---- approximations: here as good as the host's functions
inline float div_approx(float a, float b)
{
    bool huge = fabs(b) > 0x1p126f && isfinite(b); // the reciprocal is flushed to zero
    return huge ? (isinf(a) || a != a ? f32(NAN_F32) : copysign(0.f, a) * copysign(1.f, b)) : a / b;
}
inline float rsqrt(float x) { return float(1 / sqrt(double(x))); }
// The f64 approximations give the upper half of the bits.
inline double upper_half(double x) { return f64(bits(x) >> 32 << 32); }
inline double rcp_approx(double x) { return upper_half(ftz(1 / ftz(x))); }
inline double rsqrt_approx(double x) { return upper_half(1 / sqrt(ftz(x))); }
inline float ex2(float x) { return exp2(x); }
inline float lg2(float x) { return log2(x); }
