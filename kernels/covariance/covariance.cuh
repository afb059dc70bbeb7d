// What all kernels of covariances know: the rows of a part's patches among the layer's, and how a sum gets
// into the result.
#pragma once
#include "element.cuh"
#include "geometry.cuh"

// The result, a symmetric matrix for each group, in full or its lower triangle packed.
HOST struct Covariance {
    Acc* target;
    i64 rows;    // of a matrix
    i64 stored;  // elements of a matrix
    i64 packed;
    PerRun decay, scale;
};

// Element (i, j) of a group's matrix, and (j, i) where that is stored.
struct Entry {
    Acc *lower, *upper;  // upper: null where there is none
};
DEVICE Entry entry(const Covariance& covariance, Index group, Index i, Index j) {
    Acc* matrix = covariance.target + (i64)group * covariance.stored;
    i64 high = larger(i, j), low = smaller(i, j);
    if (covariance.packed) return Entry{matrix + high * (high + 1) / 2 + low, nullptr};
    return Entry{matrix + high * covariance.rows + low,
                 high == low ? nullptr : matrix + low * covariance.rows + high};
}
// decay·old + scale·sum. With a decay of 0 it does not count what there was, not even a NaN.
DEVICE Acc updated(const Covariance& covariance, const Acc* old, Acc sum) {
    Acc kept = covariance.decay == 0 ? 0 : (Acc)covariance.decay * *old;
    return fused((Acc)covariance.scale, sum, kept);
}
DEVICE void update(const Covariance& covariance, Index group, Index i, Index j, Acc sum) {
    Entry at = entry(covariance, group, i, j);
    Acc value = updated(covariance, at.lower, sum);
    *at.lower = value;
    if (at.upper) *at.upper = value;
}

// From the entries of a part's patches to those of the layer's: the part has some of the taps.
HOST struct PartRows {
    const i32* taps;  // the layer's tap behind each of the part's; null: they are the same
    Divisor inner;    // channels first: the part's taps; last: channels of a group
    i64 layer_taps;
};
DEVICE Index layer_row(const PartRows& rows, Index row) {
    if (!rows.taps) return row;
    Index outer = divide(row, rows.inner), inner = row - outer * (Index)rows.inner.by;
#if LAYOUT == CHANNELS_FIRST
    return outer * (Index)rows.layer_taps + (Index)load(rows.taps + inner);
#else
    return (Index)load(rows.taps + outer) * (Index)rows.inner.by + inner;
#endif
}
