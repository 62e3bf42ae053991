// Exchanges between the lanes of a warp. The last lane to arrive does the work of all of them.

enum Collective { SHUFFLE = 1, VOTE, MATCH, REDUCE, ELECT };

enum class Shuffle { up, down, bfly, idx };
// The low five bits of `clamp` bound the lanes that may be read, bits 8 to 12 cut the warp into segments.
template <class T> inline T shfl(Shuffle mode, T value, uint32_t b, uint32_t clamp, uint32_t mask,
                                 bool &in_range, sim::Site site)
{
    struct Lane {
        T in, out;
        int source;
    };
    int lane = int(sim::tls.lane), segment = clamp >> 8 & 31, limit = clamp & 31, by = b & 31;
    int highest = (lane & segment) | (limit & ~segment), lowest = lane & segment, source = 0;
    switch (mode) {
    case Shuffle::up:
        source = lane - by;
        in_range = source >= highest;
        break;
    case Shuffle::down:
        source = lane + by;
        in_range = source <= highest;
        break;
    case Shuffle::bfly:
        source = lane ^ by;
        in_range = source <= highest;
        break;
    case Shuffle::idx:
        source = lowest | (by & ~segment);
        in_range = source <= highest;
        break;
    }
    struct Call {
        sim::Site site;
    } call{site};
    Lane mine{value, value, in_range ? source : lane};
    auto run = [](void *const *lanes, uint32_t mask, void *context) {
        for (int l = 0; l < 32; ++l) {
            if (!(mask >> l & 1)) continue;
            auto *to = static_cast<Lane *>(lanes[l]);
            if (!(mask >> to->source & 1))
                sim::trap("shfl reads a lane that takes no part", static_cast<Call *>(context)->site);
            to->out = static_cast<Lane *>(lanes[to->source])->in;
        }
    };
    sim::warp_collective(mask, SHUFFLE, &mine, run, &call, site);
    return mine.out;
}

// Every lane's value to every lane; `lanes` are those that take part, which a short last warp has fewer of.
template <class T> struct Gathered {
    T mine, all[32];
    uint32_t lanes;
};
template <class T> inline Gathered<T> gather(T mine, Collective operation, uint32_t mask, sim::Site site)
{
    Gathered<T> lane{mine, {}, 0};
    auto run = [](void *const *lanes, uint32_t mask, void *) {
        Gathered<T> result{};
        result.lanes = mask;
        for (int l = 0; l < 32; ++l)
            if (mask >> l & 1) result.all[l] = static_cast<Gathered<T> *>(lanes[l])->mine;
        for (int l = 0; l < 32; ++l)
            if (mask >> l & 1) *static_cast<Gathered<T> *>(lanes[l]) = result;
    };
    sim::warp_collective(mask, operation, &lane, run, nullptr, site);
    return lane;
}

// The lanes that vote yes, and those that vote.
struct Votes {
    uint32_t yes, lanes;
};
inline Votes vote(bool predicate, uint32_t mask, sim::Site site)
{
    auto all = gather<uint8_t>(predicate, VOTE, mask, site);
    Votes votes{0, all.lanes};
    for (int l = 0; l < 32; ++l) votes.yes |= uint32_t(all.all[l]) << l;
    return votes;
}
inline uint32_t ballot(Votes v) { return v.yes; }
inline bool vote_any(Votes v) { return v.yes != 0; }
inline bool vote_all(Votes v) { return v.yes == v.lanes; }
inline bool vote_uni(Votes v) { return v.yes == 0 || v.yes == v.lanes; }

template <class T> inline uint32_t equal_lanes(const Gathered<T> &all, T value)
{
    uint32_t same = 0;
    for (int l = 0; l < 32; ++l)
        if (all.lanes >> l & 1 && all.all[l] == value) same |= 1u << l;
    return same;
}
template <class T> inline uint32_t match_any(T value, uint32_t mask, sim::Site site)
{
    return equal_lanes(gather(value, MATCH, mask, site), value);
}
template <class T> inline uint32_t match_all(T value, uint32_t mask, bool &all, sim::Site site)
{
    auto gathered = gather(value, MATCH, mask, site);
    all = equal_lanes(gathered, value) == gathered.lanes;
    return all ? mask : 0;
}
template <class T, class F> inline T redux(T value, uint32_t mask, F combine, sim::Site site)
{
    auto gathered = gather(value, REDUCE, mask, site);
    int first = __builtin_ctz(gathered.lanes);
    T result = gathered.all[first];
    for (int l = first + 1; l < 32; ++l)
        if (gathered.lanes >> l & 1) result = combine(result, gathered.all[l]);
    return result;
}
// The lowest lane leads: one legal choice of many.
inline uint32_t elect(uint32_t mask, bool &leader, sim::Site site)
{
    uint32_t first = uint32_t(__builtin_ctz(gather(0u, ELECT, mask, site).lanes));
    leader = sim::tls.lane == first;
    return first;
}
// The lanes the warp has: one legal answer of many.
inline uint32_t active_lanes()
{
    uint32_t left = block_threads() - thread_index() / 32 * 32;
    return left >= 32 ? ~0u : (1u << left) - 1;
}
