// Sixteen-bit floats and small matrix products, shared by mma and wgmma.
#pragma once
#include "kernel.h"
#include <bit>

namespace sim {

inline float widen(uint16_t bits, Half type)
{
    if (type == Half::bf16) return std::bit_cast<float>(uint32_t(bits) << 16);
    return float(std::bit_cast<_Float16>(bits));
}

// c[m][n] += a[m][k] * b[k][n]
template <int M, int N, int K>
inline void multiply(float (&c)[M][N], const float (&a)[M][K], const float (&b)[K][N])
{
    for (int i = 0; i < M; ++i)
        for (int k = 0; k < K; ++k)
            for (int j = 0; j < N; ++j) c[i][j] += a[i][k] * b[k][j];
}

} // namespace sim
