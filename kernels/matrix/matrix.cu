// matrix: a convolution, or its adjoint, as compressed sparse rows; columns of a row ascend.
//
// A block writes the entries of neighbouring rows, which are contiguous, or a piece of one long row. LANES
// threads make a row, 8 to 15 entries each, in shared memory; the block then copies all entries out, 16
// bytes at a time, regardless of where rows begin and end. The row pointers are known in
// closed form (src/matrix/assembly/places.rs), so that no block waits for another.
//
// An entry's number in its row is its column channel and its number on each axis in mixed radix. REGULAR
// says that these are proportional to its column and its tap, as with padding by zeros. Otherwise tables
// have them, and all the taps that fall on one column; their weights add up in the order of the CPU.
//
// COLUMN is the type of the matrix's indices. INDEX_BITS = 32 says that rows, columns, taps and the entries
// of one row can be counted in 32 bits. With PLANAR the first axis has extent 1.
#include "element.cuh"
#include "geometry.cuh"

SWITCHES(COLUMN, THREADS, PLANAR, REGULAR)

// A row of an axis: entries before it and in it, its first column and first tap, and the magic numbers of
// division by its entries.
HOST struct alignas(8) AxisRow {
    i32 before, count, column, tap;
    u32 magic, shift;
};
// A column of such a row: its taps are taps[first] and `count - 1` after it.
HOST struct AxisEntry {
    i32 column, first, count;
};
HOST struct AxisTable {
    const AxisRow* rows;
    const AxisEntry* entries;
    const i32* taps;
    i64 total;                    // entries of all rows
    i64 column_stride;            // positions of a column channel from one column of the axis to the next
    i64 column_step, weight_step; // REGULAR: from an entry to the next, in such positions and in weights
    i64 weight_stride;            // weights from one tap to the next
};
HOST struct MatrixArgs {
    const ELEMENT* weight; // [row channel, column channel of the group, tap]
    const ELEMENT* bias;   // null without
    COLUMN* indptr;
    COLUMN* indices;
    ELEMENT* data;
    AxisTable axes[3];
    i64 rows;
    i64 per_channel; // entries of a row channel
    i64 channels;    // column channels of a group
    i64 plane;       // positions of a column channel
    i64 taps;
    i64 bias_column;
    i64 lanes; // log2 of LANES
    Divisor pieces, positions, area, line, row_channels;
};

#define CAPACITY (16 * THREADS)

// The number of entries before a row. Such numbers fit in COLUMN.
DEVICE COLUMN entries_before(const MatrixArgs& args, Index channel, Index within, const AxisRow& d,
                             const AxisRow& h, const AxisRow& w) {
    COLUMN total_h = (COLUMN)args.axes[1].total, total_w = (COLUMN)args.axes[2].total;
    COLUMN inner = h.before * total_w + (COLUMN)h.count * w.before;
    COLUMN before = (COLUMN)args.channels * (d.before * total_h * total_w + d.count * inner);
    if (args.bias) before += (COLUMN)within;
    return before + (COLUMN)channel * (COLUMN)args.per_channel;
}

struct Row {
    Index channel;
    AxisRow d, h, w;
    COLUMN before;
};
// `number` may also be that of the row after the last.
DEVICE Row row_at(const MatrixArgs& args, Index number) {
    Row row;
    row.channel = divide(number, args.positions);
    Index within = number - row.channel * (Index)args.positions.by;
    Position at = position(within, args.area, args.line);
    row.d = args.axes[0].rows[at.d];
    row.h = args.axes[1].rows[at.h];
    row.w = args.axes[2].rows[at.w];
    row.before = entries_before(args, row.channel, within, row.d, row.h, row.w);
    return row;
}

DEVICE Index over_count(Index n, const AxisRow& row) {
    return divide(n, Divisor{row.count, row.magic, row.shift});
}

#if !REGULAR
// The sum of the weights of all taps that are in all three lists, rounded once; a single one is copied.
DEVICE ELEMENT merged(const MatrixArgs& args, const ELEMENT* weights, const AxisEntry& d, const AxisEntry& h,
                      const AxisEntry& w) {
    const AxisTable(&axes)[3] = args.axes;
    Acc sum = 0;
    ELEMENT single = zero<ELEMENT>();
    for (i32 i = 0; i < d.count; ++i) {
        const ELEMENT* outer = weights + (Index)axes[0].taps[d.first + i] * (Index)axes[0].weight_stride;
        for (i32 j = 0; j < h.count; ++j) {
            const ELEMENT* line = outer + (Index)axes[1].taps[h.first + j] * (Index)axes[1].weight_stride;
            for (i32 k = 0; k < w.count; ++k) {
                single = load(line + axes[2].taps[w.first + k]);
                // 0 + -0 is 0: the sum begins with the first weight.
                sum = i + j + k == 0 ? to_acc(single) : sum + to_acc(single);
            }
        }
    }
    return d.count * h.count * w.count == 1 ? single : from_acc<ELEMENT>(sum);
}
#endif

// How many elements `to` lies behind a multiple of 16 bytes.
template <typename T> DEVICE int skew(const T* to) { return (int)((u64)to % 16) / (int)sizeof(T); }

// Copies `count` elements from shared memory, where they begin as many elements behind a multiple of 16 bytes
// as `to` does.
template <typename T> DEVICE void copy_out(const T* staged, T* to, int count) {
    constexpr int vector = 16 / sizeof(T);
    int start = skew(to), end = start + count;
    T* aligned = to - start;
    for (int at = (int)threadIdx.x * vector; at < end; at += THREADS * vector) {
        if (at >= start && at + vector <= end) {
            store_global<T, vector>(aligned + at, load_pack<T, vector>(staged + at));
        } else {
            for (int v = at; v < at + vector; ++v)
                if (v >= start && v < end) aligned[v] = staged[v];
        }
    }
}

KERNEL(matrix, MatrixArgs, THREADS) {
    SHARED(COLUMN, columns, CAPACITY + 16 / sizeof(COLUMN));
    SHARED(ELEMENT, values, CAPACITY + 16 / sizeof(ELEMENT));
    SHARED(COLUMN, bounds, 2);
    const AxisTable(&axes)[3] = args.axes;
    Index thread = (Index)threadIdx.x, rows = (Index)args.rows, channels = (Index)args.channels;
    int log_lanes = (int)args.lanes;
    Index run = divide((Index)blockIdx.x, args.pieces);
    Index from = ((Index)blockIdx.x - run * (Index)args.pieces.by) * CAPACITY;
    Index height = THREADS >> log_lanes, first = run * height;
    Index number = first + (thread >> log_lanes), lane = thread & (((Index)1 << log_lanes) - 1);
    Row row = row_at(args, smaller(number, rows));
    Index length = channels * (row.d.count * row.h.count * row.w.count);
    if (thread == 0) bounds[0] = row.before;
    if (thread == THREADS - 1) bounds[1] = row_at(args, smaller(first + height, rows)).before;
    if (number < rows && lane == 0 && from == 0) {
        args.indptr[number] = row.before;
        if (number == rows - 1) args.indptr[rows] = row.before + (COLUMN)length + (args.bias ? 1 : 0);
    }
    barrier();

    // Rows shorter than the longest end before its last pieces begin.
    COLUMN left = bounds[1] - bounds[0] - (COLUMN)from;
    if (left <= 0) return;
    COLUMN begin = bounds[0] + (COLUMN)from;
    if (number < rows) {
        COLUMN* own_columns = columns + skew(args.indices + begin) + (row.before - bounds[0]);
        ELEMENT* own_values = values + skew(args.data + begin) + (row.before - bounds[0]);
        Index plane = (Index)args.plane, taps = (Index)args.taps;
        Index base = divide(row.channel, args.row_channels) * channels * plane;
        const ELEMENT* weights = args.weight + row.channel * channels * taps;
#if REGULAR
        base += row.d.column * (Index)axes[0].column_stride + row.h.column * (Index)axes[1].column_stride +
                row.w.column;
        weights += row.d.tap * (Index)axes[0].weight_stride + row.h.tap * (Index)axes[1].weight_stride +
                   row.w.tap;
#endif
        Index upto = smaller<Index>(length, from + CAPACITY);
        for (Index p = from + lane; p < upto; p += (Index)1 << log_lanes) {
            Index above = over_count(p, row.w), w = p - above * row.w.count;
            Index outer = over_count(above, row.h), h = above - outer * row.h.count;
#if PLANAR
            Index channel = outer, d = 0;
#else
            Index channel = over_count(outer, row.d), d = outer - channel * row.d.count;
#endif
#if REGULAR
            own_columns[p - from] = (COLUMN)(base + channel * plane + d * (Index)axes[0].column_step +
                                             h * (Index)axes[1].column_step + w * (Index)axes[2].column_step);
            own_values[p - from] = load(weights + channel * taps + d * (Index)axes[0].weight_step +
                                        h * (Index)axes[1].weight_step + w * (Index)axes[2].weight_step);
#else
            AxisEntry on_d = axes[0].entries[row.d.before + d], on_h = axes[1].entries[row.h.before + h];
            AxisEntry on_w = axes[2].entries[row.w.before + w];
            own_columns[p - from] = (COLUMN)(base + channel * plane + on_d.column * (Index)axes[0].column_stride +
                                             on_h.column * (Index)axes[1].column_stride + on_w.column);
            own_values[p - from] = merged(args, weights + channel * taps, on_d, on_h, on_w);
#endif
        }
        if (args.bias && lane == 0 && from <= length && length < from + CAPACITY) {
            own_columns[length - from] = (COLUMN)args.bias_column;
            own_values[length - from] = load(args.bias + row.channel);
        }
    }
    barrier();
    int count = (int)smaller<COLUMN>(left, CAPACITY);
    copy_out(columns, args.indices + begin, count);
    copy_out(values, args.data + begin, count);
}
