// Loads, stores and atomics. The emulator checks the address and gives the host's.

template <class T> [[gnu::always_inline]] inline T load(const unsigned char *p, unsigned index = 0)
{
    T value;
    __builtin_memcpy(&value, p + index * sizeof value, sizeof value);
    return value;
}
template <class T> [[gnu::always_inline]] inline void store(unsigned char *p, unsigned index, T value)
{
    __builtin_memcpy(p + index * sizeof value, &value, sizeof value);
}
inline uint64_t address(const void *p) { return reinterpret_cast<uint64_t>(p); }
inline unsigned char *pointer(uint64_t a) { return reinterpret_cast<unsigned char *>(a); }

// A thread's own memory: `frame` holds the .local variables of the function.
inline unsigned char *local_access(uint64_t a, uint32_t bytes, unsigned char *frame, size_t size,
                                   sim::Site site)
{
    if (a % bytes || a < address(frame) || a + bytes > address(frame) + size)
        sim::trap("address outside the local variables", site);
    return pointer(a);
}

// Atomic read-modify-write of `*p` by `change`; gives the value before.
template <class T, class F> inline T update(unsigned char *where, F change)
{
    T *p = reinterpret_cast<T *>(where), before = __atomic_load_n(p, __ATOMIC_SEQ_CST), after;
    do after = change(before);
    while (!__atomic_compare_exchange_n(p, &before, after, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    return before;
}
