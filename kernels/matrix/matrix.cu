// matrix: a convolution, or its adjoint, as compressed sparse rows; columns of a row ascend.
//
// A block writes the entries of neighbouring rows, which are contiguous, or a piece of one long row. `lanes`
// threads make a row in shared memory; the block then copies all entries out, 16 bytes at a time, regardless
// of where rows begin and end. The row pointers are known in closed form (src/matrix/assembly/places.rs), so
// that no block waits for another.
//
// An entry's number in its row is its column channel and its number on each axis in mixed radix. A thread
// divides for its first entry, and then steps from digit to digit. In a regular row columns and taps are
// proportional to the digits, and are stepped too. In others tables have them, and all the taps that fall on
// one column, whose weights add up in the order of the CPU: with padding other than by zeros, rows near the
// border. REGULAR says that there are none.
//
// COLUMN is the type of the matrix's indices. INDEX_BITS = 32 says that rows, columns, taps and the entries
// of one row can be counted in 32 bits. With PLANAR the first axis has extent 1.
#include "element.cuh"
#include "geometry.cuh"

SWITCHES(COLUMN, THREADS, PLANAR, REGULAR)

// A row of an axis: entries before it and in it, its first column and first tap (-1 in an irregular one), and
// the magic numbers of division by its entries.
HOST struct alignas(8) AxisRow {
    i32 before, count, column, tap;
    u32 magic, shift;
};
// A column of such a row, and its tap; -1 if there are several.
HOST struct alignas(8) AxisEntry {
    i32 column, tap;
};
// The taps of such a column: taps[first] and `count - 1` after it.
HOST struct alignas(8) AxisTaps {
    i32 first, count;
};
HOST struct AxisTable {
    const AxisRow* rows;
    const AxisEntry* entries;
    const AxisTaps* lists;
    const i32* taps;
    i64 total;                    // entries of all rows
    i64 column_stride;            // positions of a column channel from one column of the axis to the next
    i64 column_step, weight_step; // in regular rows: from an entry to the next, in such positions and in weights
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
    i64 height; // rows of a block
    Divisor lanes, pieces, positions, area, line, row_channels;
};

// Entries of a block, at most: with kernels of 3×3 and channels by powers of two all of it is used.
#define CAPACITY (36 * THREADS)
// What is copied out lies as far behind a multiple of so many bytes as where it goes.
#define LINE_BYTES 128

struct Row {
    Index channel;
    AxisRow d, h, w;
    COLUMN before; // entries of the rows before it; such numbers fit in COLUMN
};
DEVICE Row row_at(const MatrixArgs& args, Index number) {
    Row row;
    row.channel = divide(number, args.positions);
    Index within = number - row.channel * (Index)args.positions.by;
    Position at = position(within, args.area, args.line);
    row.d = args.axes[0].rows[at.d];
    row.h = args.axes[1].rows[at.h];
    row.w = args.axes[2].rows[at.w];
    COLUMN total_h = (COLUMN)args.axes[1].total, total_w = (COLUMN)args.axes[2].total;
    COLUMN inner = row.h.before * total_w + (COLUMN)row.h.count * row.w.before;
    row.before = (COLUMN)args.channels * (row.d.before * total_h * total_w + row.d.count * inner) +
                 (COLUMN)row.channel * (COLUMN)args.per_channel;
    if (args.bias) row.before += (COLUMN)within;
    return row;
}

DEVICE bool regular(const Row& row) {
#if REGULAR
    return true;
#else
    return (row.d.tap | row.h.tap | row.w.tap) >= 0;
#endif
}

// A number in mixed radix: a column channel, and a number on each axis.
struct Digits {
    Index channel;
    i32 d, h, w;
};
DEVICE Divisor entries_of(const AxisRow& row) { return Divisor{row.count, row.magic, row.shift}; }
DEVICE Digits digits_of(Index number, const Row& row) {
    Index above = divide(number, entries_of(row.w)), outer = divide(above, entries_of(row.h));
    Index channel = PLANAR ? outer : divide(outer, entries_of(row.d));
    return Digits{channel, (i32)(outer - channel * row.d.count), (i32)(above - outer * row.h.count),
                  (i32)(number - above * row.w.count)};
}
// The same for a number below 2^31.
DEVICE Digits digits_of_narrow(i32 number, const Row& row) {
    i32 above = divide_narrow(number, entries_of(row.w)), outer = divide_narrow(above, entries_of(row.h));
    i32 channel = PLANAR ? outer : divide_narrow(outer, entries_of(row.d));
    return Digits{channel, outer - channel * row.d.count, above - outer * row.h.count,
                  number - above * row.w.count};
}

// How far apart entries are whose digits differ by so much: in columns and in weights, as far as these are
// proportional to digits, which in irregular rows is that of the channel alone. (Unsigned: beyond a row's last
// entry they are never used, but stepped to.)
struct Distance {
    Unsigned columns, weights;
};
DEVICE Distance distance(const MatrixArgs& args, const Row& row, const Digits& digits) {
    const AxisTable(&axes)[3] = args.axes;
    Unsigned channel = (Unsigned)digits.channel;
    Unsigned d = (Unsigned)digits.d, h = (Unsigned)digits.h, w = (Unsigned)digits.w;
    Distance far = {channel * (Unsigned)args.plane, channel * (Unsigned)args.taps};
    if (regular(row)) {
        far.columns += d * (Unsigned)axes[0].column_step + h * (Unsigned)axes[1].column_step +
                       w * (Unsigned)axes[2].column_step;
        far.weights += d * (Unsigned)axes[0].weight_step + h * (Unsigned)axes[1].weight_step +
                       w * (Unsigned)axes[2].weight_step;
    }
    return far;
}

// The entries of a row that a thread makes.
struct Walk {
    i32 d, h, w, count_d, count_h, count_w;
    Distance at, carry_d, carry_h, carry_w; // at the entry, and from a full digit to where it carries over
    DEVICE Walk(const MatrixArgs& args, const Row& row, const Digits& first)
        : d(first.d), h(first.h), w(first.w), count_d(row.d.count), count_h(row.h.count), count_w(row.w.count),
          at(distance(args, row, first)), carry_d(distance(args, row, {1, -count_d, 0, 0})),
          carry_h(distance(args, row, {PLANAR, 1 - PLANAR, -count_h, 0})),
          carry_w(distance(args, row, {0, 0, 1, -count_w})) {}
    DEVICE void move(const Distance& by) {
        at.columns += by.columns;
        at.weights += by.weights;
    }
    DEVICE void step(const Digits& by, const Distance& far) {
        move(far);
        w += by.w;
        h += by.h;
        if (w >= count_w) {
            w -= count_w;
            ++h;
            move(carry_w);
        }
#if !PLANAR
        d += by.d;
#endif
        if (h >= count_h) {
            h -= count_h;
            ++d;
            move(carry_h);
        }
#if !PLANAR
        if (d >= count_d) {
            d -= count_d;
            move(carry_d);
        }
#endif
    }
};

#if !REGULAR
// The sum of the weights of all taps that are in the lists of three entries, rounded once.
DEVICE ELEMENT merged(const MatrixArgs& args, const ELEMENT* weights, u32 entry_d, u32 entry_h, u32 entry_w) {
    const AxisTable(&axes)[3] = args.axes;
    AxisTaps d = PLANAR ? AxisTaps{0, 1} : load(axes[0].lists + entry_d);
    AxisTaps h = load(axes[1].lists + entry_h), w = load(axes[2].lists + entry_w);
    i32 at_d = 0, at_h = 0, at_w = 0, terms = d.count * h.count * w.count;
    Acc sum = 0;
    UNROLL_BY(1)
    for (i32 i = 0; i < terms; ++i) {
        Index place = load(axes[1].taps + (u32)(h.first + at_h)) * (Index)axes[1].weight_stride +
                      load(axes[2].taps + (u32)(w.first + at_w));
        if (!PLANAR) place += load(axes[0].taps + (u32)(d.first + at_d)) * (Index)axes[0].weight_stride;
        Acc term = to_acc(load(weights + place));
        // 0 + -0 is 0: the sum begins with the first weight.
        sum = i == 0 ? term : sum + term;
        if (++at_w == w.count) {
            at_w = 0;
            if (++at_h == h.count) {
                at_h = 0;
                ++at_d;
            }
        }
    }
    return from_acc<ELEMENT>(sum);
}
#endif

// How many elements `to` lies behind a multiple of LINE_BYTES.
template <typename T> DEVICE int skew(const T* to) { return (int)((u64)to % LINE_BYTES) / (int)sizeof(T); }

// Copies `count` elements from shared memory, where they begin as many elements behind a multiple of LINE_BYTES
// as `to` does: single ones before the first and after the last 16 bytes, by neighbouring threads.
template <typename T> DEVICE void copy_out(const T* staged, T* to, int count) {
    constexpr int vector = 16 / sizeof(T);
    int thread = (int)threadIdx.x, start = skew(to), end = start + count;
    int first = (start + vector - 1) / vector * vector, last = end / vector * vector;
    T* line = to - start;
    for (int at = thread * vector; at < last; at += THREADS * vector)
        if (at >= first) store_global<T, vector>(line + at, load_pack<T, vector>(staged + at));
    int before = start + thread, after = larger(first, last) + thread;
    if (before < smaller(first, end)) line[before] = staged[before];
    if (after < end) line[after] = staged[after];
}

KERNEL(matrix, MatrixArgs, THREADS) {
    SHARED(COLUMN, columns, CAPACITY + LINE_BYTES / sizeof(COLUMN));
    SHARED(ELEMENT, values, CAPACITY + LINE_BYTES / sizeof(ELEMENT));
    SHARED(COLUMN, bounds, 2);
    const AxisTable(&axes)[3] = args.axes;
    Index rows = (Index)args.rows, channels = (Index)args.channels;
    int thread = (int)threadIdx.x, lanes = (int)args.lanes.by;
    int group = divide_narrow(thread, args.lanes), lane = thread - group * lanes;
    int run = divide_narrow((int)blockIdx.x, args.pieces);
    Index from = (Index)((int)blockIdx.x - run * (int)args.pieces.by) * CAPACITY;
    Index first = run * (Index)args.height, last = smaller(first + (Index)args.height, rows) - 1;
    Index number = first + group;
    Row row = row_at(args, smaller(number, last));
    Index own = channels * (row.d.count * row.h.count * row.w.count), length = own + (args.bias ? 1 : 0);
    if (thread == 0) bounds[0] = row.before;
    if (number == last && lane == 0) {
        bounds[1] = row.before + (COLUMN)length;
        if (number == rows - 1 && from == 0) args.indptr[rows] = row.before + (COLUMN)length;
    }
    if (number <= last && lane == 0 && from == 0) args.indptr[number] = row.before;
    barrier();

    // Rows shorter than the longest end before its last pieces begin.
    COLUMN left = bounds[1] - bounds[0] - (COLUMN)from;
    if (left <= 0) return;
    COLUMN begin = bounds[0] + (COLUMN)from;
    if (number <= last) {
        COLUMN* own_columns = columns + skew(args.indices + begin) + (int)(row.before - bounds[0]);
        ELEMENT* own_values = values + skew(args.data + begin) + (int)(row.before - bounds[0]);
        Index base = divide(row.channel, args.row_channels) * channels * (Index)args.plane;
        Index weights = row.channel * channels * (Index)args.taps;
        Walk walk(args, row, digits_of_narrow(lane, row));
        if (from > 0 && from < own) {
            Digits skipped = digits_of(from, row);
            walk.step(skipped, distance(args, row, skipped));
        }
        Digits apart = digits_of_narrow(lanes, row);
        Distance far = distance(args, row, apart);
        int upto = (int)smaller<Index>(own - from, CAPACITY);
        if (regular(row)) {
            Index column = row.d.column * (Index)axes[0].column_stride +
                           row.h.column * (Index)axes[1].column_stride + row.w.column;
            Index tap = row.d.tap * (Index)axes[0].weight_stride + row.h.tap * (Index)axes[1].weight_stride +
                        row.w.tap;
            walk.move({(Unsigned)(base + column), (Unsigned)(weights + tap)});
            for (int p = lane; p < upto; p += lanes) {
                own_columns[p] = (COLUMN)walk.at.columns;
                own_values[p] = load(args.weight + walk.at.weights);
                walk.step(apart, far);
            }
        }
#if !REGULAR
        else {
            walk.move({(Unsigned)base, (Unsigned)weights});
            UNROLL_BY(1)
            for (int p = lane; p < upto; p += lanes) {
                u32 at_d = row.d.before + walk.d, at_h = row.h.before + walk.h, at_w = row.w.before + walk.w;
                AxisEntry d = PLANAR ? AxisEntry{0, 0} : load(axes[0].entries + at_d);
                AxisEntry h = load(axes[1].entries + at_h), w = load(axes[2].entries + at_w);
                own_columns[p] = (COLUMN)((Index)walk.at.columns + d.column * (Index)axes[0].column_stride +
                                          h.column * (Index)axes[1].column_stride + w.column);
                if ((d.tap | h.tap | w.tap) >= 0)
                    own_values[p] = load(args.weight + (walk.at.weights + (Unsigned)(
                        d.tap * (Index)axes[0].weight_stride + h.tap * (Index)axes[1].weight_stride + w.tap)));
                else
                    own_values[p] = merged(args, args.weight + walk.at.weights, at_d, at_h, at_w);
                walk.step(apart, far);
            }
        }
#endif
        // The bias column, by the lane whose turn it is.
        if (args.bias && lane == 0 && from <= own && own < from + CAPACITY) {
            own_columns[own - from] = (COLUMN)args.bias_column;
            own_values[own - from] = load(args.bias + row.channel);
        }
    }
    barrier();
    int count = (int)smaller<COLUMN>(left, CAPACITY);
    copy_out(columns, args.indices + begin, count);
    copy_out(values, args.data + begin, count);
}
