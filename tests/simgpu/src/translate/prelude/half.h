// Half precision: values are bits.

struct F16 {
    static constexpr int precision = 11, emin = -14;
    static constexpr uint16_t infinity = 0x7c00;
};
struct Bf16 {
    static constexpr int precision = 8, emin = -126;
    static constexpr uint16_t infinity = 0x7f80;
};
template <class H> inline float widen(uint16_t h)
{
    if constexpr (std::is_same_v<H, Bf16>) return f32(uint32_t(h) << 16);
    uint32_t exponent = h >> 10 & 31, fraction = h & 0x3ff;
    float magnitude = exponent == 31  ? f32(0x7f800000 | fraction << 13)
                      : exponent == 0 ? float(fraction) * 0x1p-24f
                                      : f32((exponent + 112) << 23 | fraction << 13);
    return h & 0x8000 ? -magnitude : magnitude;
}
// `x` + `error` (a side, as in `narrow`) rounded to half precision.
template <class H, Rounding R = RN> inline uint16_t round_half(double x, double error = 0)
{
    if (x != x) return NAN_HALF;
    uint16_t sign = signbit(x) ? 0x8000 : 0;
    if (isinf(x)) return sign | H::infinity;
    if (x == 0) return sign;
    double magnitude = fabs(x), beyond = sign ? -error : error;
    int exponent = greatest(__builtin_ilogb(magnitude), H::emin);
    double units = __builtin_ldexp(magnitude, H::precision - 1 - exponent), whole = floor(units),
           rest = units - whole;
    bool inexact = rest != 0 || beyond != 0;
    if (rest == 0 && beyond < 0) whole -= 1, rest = 1; // just under a whole number of units
    bool up = R == RN ? rest > 0.5 ||
                            (rest == 0.5 && (beyond > 0 || (beyond == 0 && __builtin_fmod(whole, 2) == 1)))
              : R == RP ? inexact && !sign
              : R == RM ? inexact && sign
                        : false;
    // Units counted on from the bits of the smallest number of this exponent carry into the exponent by
    // themselves.
    int64_t pattern = int64_t(whole) + up + (int64_t(exponent - H::emin) << (H::precision - 1));
    if (pattern >= H::infinity) {
        bool to_infinity = R == RN || (R == RP && !sign) || (R == RM && sign);
        return sign | (to_infinity ? H::infinity : H::infinity - 1);
    }
    return sign | uint16_t(pattern);
}
// The conversions kernels are full of.
inline uint16_t bf16_rn(float f)
{
    uint32_t u = bits(f);
    return f != f ? NAN_HALF : uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
inline uint16_t f16_rn(float f) { return f != f ? NAN_HALF : __builtin_bit_cast(uint16_t, _Float16(f)); }
template <class H> inline uint16_t half_fma(uint16_t a, uint16_t b, uint16_t c)
{
    double product = double(widen<H>(a)) * widen<H>(b), z = widen<H>(c), sum = product + z;
    return round_half<H>(sum, sum_error(product, z, sum));
}
template <class H> inline uint16_t half_add(uint16_t a, uint16_t b)
{
    double x = widen<H>(a), y = widen<H>(b), sum = x + y;
    return round_half<H>(sum, sum_error(x, y, sum));
}
template <class H> inline uint16_t half_neg(uint16_t a) { return a ^ 0x8000; }
template <class H> inline uint16_t half_abs(uint16_t a) { return a & 0x7fff; }
template <class H> inline uint16_t half_sub(uint16_t a, uint16_t b) { return half_add<H>(a, half_neg<H>(b)); }
template <class H> inline uint16_t half_mul(uint16_t a, uint16_t b)
{
    return round_half<H>(double(widen<H>(a)) * widen<H>(b));
}
template <class H> inline uint16_t half_min(uint16_t a, uint16_t b)
{
    return round_half<H>(min(widen<H>(a), widen<H>(b)));
}
template <class H> inline uint16_t half_max(uint16_t a, uint16_t b)
{
    return round_half<H>(max(widen<H>(a), widen<H>(b)));
}
template <class H> inline uint16_t half_min_nan(uint16_t a, uint16_t b)
{
    return round_half<H>(min_nan(widen<H>(a), widen<H>(b)));
}
template <class H> inline uint16_t half_max_nan(uint16_t a, uint16_t b)
{
    return round_half<H>(max_nan(widen<H>(a), widen<H>(b)));
}
template <class H> inline uint16_t half_ex2(uint16_t a) { return round_half<H>(exp2(widen<H>(a))); }
template <class H> inline uint16_t half_tanh(uint16_t a) { return round_half<H>(tanh(widen<H>(a))); }
// Subnormals (of half precision) to zero.
template <class H> inline uint16_t half_ftz(uint16_t a)
{
    return (a & 0x7fff) < (1 << (H::precision - 1)) ? a & 0x8000 : a;
}
template <class H> inline uint16_t half_sat(uint16_t a) { return round_half<H>(sat(widen<H>(a))); }
template <class H> inline uint16_t half_relu(uint16_t a)
{
    return (a & 0x7fff) > H::infinity ? NAN_HALF : a & 0x8000 ? 0 : a;
}
inline uint32_t pair(uint16_t lower, uint16_t upper) { return uint32_t(upper) << 16 | lower; }
template <class F, class... A> inline uint32_t both(F f, A... values)
{
    return pair(f(uint16_t(values)...), f(uint16_t(values >> 16)...));
}
