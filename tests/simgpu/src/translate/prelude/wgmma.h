// The registers that a kernel's wgmma accumulate in. From the instruction to the wait that covers its group
// they are the device's, and when the kernel has used them since, the next wgmma wants a wgmma.fence before
// it. (Where exactly the compiler puts the uses among fences says nothing: it moves constants past them.)
template <int N> struct Accumulators {
    alignas(64) uint32_t value[N] = {};
    uint32_t group[N] = {}; // the last that writes it; groups count from 1
    uint32_t committed = 0, finished = 0;
    bool used = true, fenced = false;

    uint32_t &at(int i, sim::Site site)
    {
        if (group[i] > finished) sim::trap("wgmma's accumulators used before wgmma.wait_group", site);
        used = true;
        return value[i];
    }
    float *issue(int first, int count, sim::Site site)
    {
        if (used && !fenced) sim::trap("wgmma without wgmma.fence after its accumulators were used", site);
        used = false;
        for (int i = first; i < first + count; ++i) group[i] = committed + 1;
        return reinterpret_cast<float *>(value + first);
    }
    void fence() { fenced = true; }
    void commit() { ++committed; }
    void wait(uint32_t pending)
    {
        finished = greatest(finished, committed > pending ? committed - pending : 0);
        fenced = false;
    }
};
