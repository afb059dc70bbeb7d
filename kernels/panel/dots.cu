// Inner products of the rows of two panels, summed in f64.
//
// In `partial_dots` a warp goes over a piece of the vectors for one row of A and COLUMNS rows of B, its
// lanes taking turns; `total_dots` adds the pieces up in order. A block's warps take rows of A side by
// side, so that the rows of B are read from cache.
#include "element.cuh"

SWITCHES(COLUMNS)

HOST struct DotsArgs {
    const ELEMENT* a;
    const ELEMENT* b;
    f64* partial; // [pieces, rows, columns]
    f64* total;   // [rows, columns]
    i64 rows, columns;
    i64 length; // of a vector, and from one to the next
    i64 piece;
    i64 pieces;
};

// Block (rows of A, rows of B, piece).
KERNEL(partial_dots, DotsArgs, 256) {
    i64 row = (i64)blockIdx.x * 8 + (i64)threadIdx.x / 32, column = (i64)blockIdx.y * COLUMNS;
    i64 start = (i64)blockIdx.z * args.piece, end = start + args.piece;
    if (end > args.length) end = args.length;
    f64 sums[COLUMNS] = {};
    bool there = row < args.rows;
    for (i64 at = start + (i64)threadIdx.x % 32; at < end; at += 32) {
        f64 left = there ? (f64)to_acc(args.a[row * args.length + at]) : 0.0;
        UNROLL
        for (int c = 0; c < COLUMNS; ++c) {
            if (column + c >= args.columns) continue;
            sums[c] = fused(left, (f64)to_acc(args.b[(column + c) * args.length + at]), sums[c]);
        }
    }
    UNROLL
    for (int c = 0; c < COLUMNS; ++c) {
        f64 sum = sums[c];
        UNROLL
        for (int half = 16; half > 0; half /= 2) sum += shuffle_xor(sum, half);
        if (there && threadIdx.x % 32 == 0 && column + c < args.columns)
            args.partial[((i64)blockIdx.z * args.rows + row) * args.columns + column + c] = sum;
    }
}

// A thread for each product.
KERNEL(total_dots, DotsArgs, 256) {
    i64 at = (i64)blockIdx.x * 256 + (i64)threadIdx.x, products = args.rows * args.columns;
    if (at >= products) return;
    f64 sum = 0;
    for (i64 piece = 0; piece < args.pieces; ++piece) sum += args.partial[piece * products + at];
    args.total[at] = sum;
}
