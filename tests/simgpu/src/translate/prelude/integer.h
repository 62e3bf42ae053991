// Integer and bit instructions of PTX that are not one C++ operator. Names are the instructions'.

template <class T> constexpr uint32_t width = sizeof(T) * 8;
// Twice as wide, for products.
template <class T> struct Wide;
template <> struct Wide<int16_t> {
    using type = int32_t;
};
template <> struct Wide<uint16_t> {
    using type = uint32_t;
};
template <> struct Wide<int32_t> {
    using type = int64_t;
};
template <> struct Wide<uint32_t> {
    using type = uint64_t;
};
template <> struct Wide<int64_t> {
    using type = __int128;
};
template <> struct Wide<uint64_t> {
    using type = unsigned __int128;
};
template <class T> using wide = typename Wide<T>::type;

// Of integers; floats have their own.
template <class T> inline T least(T a, T b) { return a < b ? a : b; }
template <class T> inline T greatest(T a, T b) { return a > b ? a : b; }

template <class T> inline T mul_hi(T a, T b) { return T((wide<T>(a) * wide<T>(b)) >> width<T>); }
template <class T> inline T mul24_lo(T a, T b)
{
    a = T(a << 8) >> 8, b = T(b << 8) >> 8;
    return T(wide<T>(a) * wide<T>(b));
}
template <class T> inline T mul24_hi(T a, T b)
{
    a = T(a << 8) >> 8, b = T(b << 8) >> 8;
    return T((wide<T>(a) * wide<T>(b)) >> 16);
}
// Division by zero is unspecified, not an error; the lowest integer by -1 wraps.
template <class T> inline T div(T a, T b)
{
    if (b == 0) return T(~T(0));
    if (std::is_signed_v<T> && b == T(-1)) return T(-std::make_unsigned_t<T>(a));
    return T(a / b);
}
template <class T> inline T rem(T a, T b)
{
    if (b == 0) return a;
    if (std::is_signed_v<T> && b == T(-1)) return 0;
    return T(a % b);
}
template <class T> inline T sad(T a, T b, T c)
{
    using U = std::make_unsigned_t<T>;
    return T(U(c) + (a < b ? U(b) - U(a) : U(a) - U(b)));
}
inline int32_t saturate(int64_t x)
{
    return int32_t(x > INT32_MAX ? INT32_MAX : x < INT32_MIN ? INT32_MIN : x);
}

template <class T> inline T shl(T v, uint32_t n) { return n >= width<T> ? T(0) : T(v << n); }
template <class T> inline T shr(T v, uint32_t n)
{
    return T(v >> (n < width<T> ? n : width<T> - 1)) >> (n >= width<T>);
}
inline uint64_t funnel(uint32_t lo, uint32_t hi) { return uint64_t(hi) << 32 | lo; }
inline uint32_t shf_l(uint32_t lo, uint32_t hi, uint32_t n) { return uint32_t(funnel(lo, hi) << n >> 32); }
inline uint32_t shf_r(uint32_t lo, uint32_t hi, uint32_t n) { return uint32_t(funnel(lo, hi) >> n); }
inline uint32_t clamp32(uint32_t n) { return n < 32 ? n : 32; }

template <class T> inline uint32_t popc(T v)
{
    return uint32_t(sizeof(T) == 8 ? __builtin_popcountll(v) : __builtin_popcount(v));
}
template <class T> inline uint32_t clz(T v)
{
    return v == 0 ? width<T> : uint32_t(sizeof(T) == 8 ? __builtin_clzll(v) : __builtin_clz(v));
}
template <class T> inline T brev(T v)
{
    T r = 0;
    for (uint32_t i = 0; i < width<T>; ++i) r |= T(v >> i & 1) << (width<T> - 1 - i);
    return r;
}
// Position of the highest bit that differs from the sign.
template <class T> inline uint32_t bfind(T v)
{
    using U = std::make_unsigned_t<T>;
    U u = v < 0 ? U(~v) : U(v);
    return u ? width<T> - 1 - clz(u) : ~0u;
}
template <class T> inline uint32_t bfind_shiftamt(T v)
{
    uint32_t at = bfind(v);
    return at == ~0u ? at : width<T> - 1 - at;
}
template <class T> inline T bfe(T a, uint32_t position, uint32_t length)
{
    using U = std::make_unsigned_t<T>;
    position &= 255, length &= 255;
    if (!length) return 0;
    U field = shr(U(a), position), sign = 0;
    if (std::is_signed_v<T>) sign = U(a) >> least(position + length - 1, width<T> - 1) & 1;
    // Bits past the operand are the sign's; so are those past the field.
    uint32_t given = least(length, position < width<T> ? width<T> - position : 0u);
    U mask = given >= width<T> ? U(~U(0)) : U((U(1) << given) - 1);
    return T((field & mask) | (sign ? U(~mask) : U(0)));
}
template <class T> inline T bfi(T a, T b, uint32_t position, uint32_t length)
{
    position &= 255, length &= 255;
    T mask = shl(length >= width<T> ? T(~T(0)) : T((T(1) << length) - 1), position);
    return (b & ~mask) | (shl(a, position) & mask);
}
template <int table> inline uint32_t lop3(uint32_t a, uint32_t b, uint32_t c)
{
    auto row = [](int i, uint32_t hit) { return table >> i & 1 ? hit : 0; };
    return row(7, a & b & c) | row(6, a & b & ~c) | row(5, a & ~b & c) | row(4, a & ~b & ~c) |
           row(3, ~a & b & c) | row(2, ~a & b & ~c) | row(1, ~a & ~b & c) | row(0, ~a & ~b & ~c);
}
inline uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector)
{
    uint64_t bytes = funnel(a, b);
    uint32_t r = 0;
    for (int i = 0; i < 4; ++i) {
        uint32_t s = selector >> 4 * i & 15, byte = uint32_t(bytes >> 8 * (s & 7)) & 255;
        if (s & 8) byte = byte & 128 ? 255 : 0;
        r |= byte << 8 * i;
    }
    return r;
}
// The named modes of prmt: each is four selectors, one for each low two bits of c.
inline uint32_t prmt_mode(const uint16_t (&selectors)[4], uint32_t a, uint32_t b, uint32_t c)
{
    return prmt(a, b, selectors[c & 3]);
}
constexpr uint16_t prmt_f4e[4] = {0x3210, 0x4321, 0x5432, 0x6543},
                   prmt_b4e[4] = {0x5670, 0x6701, 0x7012, 0x0123},
                   prmt_rc8[4] = {0x0000, 0x1111, 0x2222, 0x3333},
                   prmt_ecl[4] = {0x3210, 0x3211, 0x3222, 0x3333},
                   prmt_ecr[4] = {0x0000, 0x1110, 0x2210, 0x3210},
                   prmt_rc16[4] = {0x1010, 0x3232, 0x1010, 0x3232};

template <class A, class B> inline uint32_t dp4a(uint32_t a, uint32_t b, uint32_t c)
{
    for (int i = 0; i < 4; ++i) c += uint32_t(int32_t(A(a >> 8 * i)) * int32_t(B(b >> 8 * i)));
    return c;
}
template <class A, class B> inline uint32_t dp2a(uint32_t a, uint32_t b, uint32_t c)
{
    for (int i = 0; i < 2; ++i) c += uint32_t(int32_t(A(a >> 16 * i)) * int32_t(B(b >> 8 * i)));
    return c;
}
// Sum and carry: `carry` is the condition code's flag, a borrow for subtractions.
template <class T> inline T add_carry(T a, T b, bool in, bool &carry)
{
    T sum;
    bool first = __builtin_add_overflow(a, b, &sum);
    bool second = __builtin_add_overflow(sum, T(in), &sum);
    carry = first | second;
    return sum;
}
template <class T> inline T sub_borrow(T a, T b, bool in, bool &borrow)
{
    T difference;
    bool first = __builtin_sub_overflow(a, b, &difference);
    bool second = __builtin_sub_overflow(difference, T(in), &difference);
    borrow = first | second;
    return difference;
}
