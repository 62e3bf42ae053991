// cvt: between numbers of all kinds.

// A float rounded to an integral value of the same type.
template <class T> inline T integral(Rounding mode, T x)
{
    switch (mode) {
    case RN: return nearbyint(x);
    case RZ: return trunc(x);
    case RM: return floor(x);
    default: return ceil(x);
    }
}
// An integral float to an integer. What does not fit becomes the nearest that does. A NaN becomes zero, or
// the highest bit alone where one of the two types has 64 bits.
template <class I, class F> inline I to_integer(F x)
{
    using L = std::numeric_limits<I>;
    if (x != x)
        return sizeof(I) == 8 || sizeof(F) == 8 ? I(std::make_unsigned_t<I>(1) << (sizeof(I) * 8 - 1)) : I(0);
    if (x < F(L::min())) return L::min();
    return x >= F(__builtin_ldexp(1, L::digits)) ? L::max() : I(x);
}
// An integer to a float.
template <class F, class I> inline F from_integer(Rounding mode, I v)
{
    F f = F(v);
    if (mode == RN) return f;
    __int128 above = __int128(f) - __int128(v);
    bool down = mode == RM || (mode == RZ && v > 0);
    if (above > 0 && down) return nextafter(f, -F(__builtin_inff()));
    if (above < 0 && !down) return nextafter(f, F(__builtin_inff()));
    return f;
}
// Integers: into the range of a narrower or otherwise signed type.
template <class To, class From> inline To clamp(From v)
{
    using L = std::numeric_limits<To>;
    __int128 x = v;
    return x < L::min() ? L::min() : x > L::max() ? L::max() : To(v);
}
