// fold, channels last, where the channels of a group fill no sector of memory: rows of patches are read as
// they lie, whole taps and channels at once. The same sums in the same order as in fold.cu. Zeros and strides
// of 1, one tap on the first axis. Compiled for one layer's taps and channels.
//
// A block has CHANNELS, whole groups, of a strip of HEIGHT lines by WIDTH columns of the result, a thread for
// each column and channel. It goes over the lines of outputs that reach the strip, from the last to the
// first, so that each result meets its taps in ascending order: copies the patches of a line into shared
// memory, adds them to the results that its taps reach, which a thread holds in registers, and stores those
// that no other line reaches.
#include "element.cuh"
#include "geometry.cuh"

SWITCHES(AVERAGE, CHANNELS, PER_GROUP, WIDTH, HEIGHT, COLUMNS, COPY)

HOST struct FoldRowsArgs {
    const ELEMENT* patches;
    ELEMENT* output;
    i64 channels; // over all groups
    Axes axes;
    Adjoint adjoint[3];
    // A block's place, innermost last: image, depth, strip, columns, channels.
    Divisor chunks, columns, strips, depths;
};

constexpr int KH = three<1>(TAPS), KW = three<2>(TAPS), TAPS_IN_ALL = KH * KW;
constexpr int DH = three<1>(DILATIONS), DW = three<2>(DILATIONS);
// Lines of results that a line of outputs reaches.
constexpr int REACH = (KH - 1) * DH + 1;
// Of a position's patches, and of those of COLUMNS positions, which are all that lie inside.
constexpr int ROW = CHANNELS * TAPS_IN_ALL, LINE = COLUMNS * ROW;
constexpr int THREADS = (WIDTH * CHANNELS + 31) / 32 * 32;
static_assert(ROW % COPY == 0, "a copy is of one position");

// The patches from this position on, of rows of taps `low` to `high`, the others of which may be missing.
DEVICE void copy_line(ELEMENT* to, const ELEMENT* from, Index step, int count, int low, int high) {
    for (int at = (int)threadIdx.x * COPY; at < count * ROW; at += THREADS * COPY) {
        int column = at / ROW, entry = at - column * ROW;
        int first = entry / PER_GROUP % TAPS_IN_ALL / KW;
        int last = (entry + COPY - 1) / PER_GROUP % TAPS_IN_ALL / KW;
        // (Of two groups, maybe.)
        if (first <= last && (last < low || first > high)) continue;
        const ELEMENT* its = from + column * step + entry;
        if constexpr (COPY * sizeof(ELEMENT) == 16) copy_async_16(to + at, its, true);
        else if constexpr (COPY * sizeof(ELEMENT) == 4) copy_async_4(to + at, its, true);
        else store_pack<ELEMENT, COPY>(to + at, load_pack<ELEMENT, COPY>(its));
    }
    copy_async_commit();
}

KERNEL(fold_rows, FoldRowsArgs, THREADS) {
    SHARED(ELEMENT, patches, LINE);
    const Axes& axes = args.axes;
    Index rest = (Index)blockIdx.x, image = divide(rest, args.chunks);
    Index chunk = rest - image * (Index)args.chunks.by;
    rest = image, image = divide(rest, args.columns);
    Index left = (rest - image * (Index)args.columns.by) * WIDTH;
    rest = image, image = divide(rest, args.strips);
    Index top = (rest - image * (Index)args.strips.by) * HEIGHT;
    rest = image, image = divide(rest, args.depths);
    Index depth = rest - image * (Index)args.depths.by;

    Index channels = (Index)args.channels, low_h = (Index)axes.at[1].low, low_w = (Index)axes.at[2].low;
    Index plane = reader_output<0>(axes, (Index)axes.at[0].low + depth, 0);
    Index height = outputs<1>(axes), width = outputs<2>(axes);
    int c = (int)threadIdx.x % CHANNELS;
    Index w = left + (Index)threadIdx.x / CHANNELS;
    bool works = (int)threadIdx.x < WIDTH * CHANNELS && w < inputs<2>(axes);
    // The positions on the last axis that reach these columns.
    Index first = larger<Index>(0, left + low_w - (KW - 1) * DW);
    Index count = smaller<Index>(width, left + WIDTH + low_w) - first;
    Index step = channels * TAPS_IN_ALL;
    const ELEMENT* from = args.patches
        + ((image * outputs<0>(axes) + larger<Index>(plane, 0)) * height * width + first) * step
        + chunk * ROW;
    // The first tap of the output with the result's own number.
    const ELEMENT* its = patches + (c / PER_GROUP * TAPS_IN_ALL) * PER_GROUP + c % PER_GROUP;

    Acc sums[REACH] = {};
    Index end = smaller<Index>(top + HEIGHT, inputs<1>(axes));
    UNROLL_BY(1)
    for (Index line = end - 1; line > top - REACH; --line) {
        // Output `h` reaches the results from `line` on.
        Index h = line + low_h;
        if (plane >= 0 && count > 0 && (Unsigned)h < (Unsigned)height) {
            int low = line >= top ? 0 : (int)(top - line + DH - 1) / DH;
            int high = line + REACH <= end ? KH - 1 : (int)(end - 1 - line) / DH;
            barrier();
            copy_line(patches, from + h * width * step, step, (int)count, low, high);
            copy_async_wait<0>();
            barrier();
            if (works) {
                UNROLL
                for (int kh = 0; kh < KH; ++kh) {
                    if (kh < low || kh > high) continue;
                    UNROLL
                    for (int kw = 0; kw < KW; ++kw) {
                        Index o = w + low_w - kw * DW;
                        if ((Unsigned)o < (Unsigned)width)
                            sums[kh * DH] += to_acc(its[(int)(o - first) * ROW + (kh * KW + kw) * PER_GROUP]);
                    }
                }
            }
        }
        Index done = line + REACH - 1;
        if (works && done >= top && done < end) {
            Acc sum = sums[REACH - 1];
#ifdef AVERAGE
            Index entries = overlap<0>(axes, args.adjoint, depth) * overlap<1>(axes, args.adjoint, done)
                * overlap<2>(axes, args.adjoint, w);
            sum /= (Acc)larger<Index>(1, entries);
#endif
            Index to = ((image * inputs<0>(axes) + depth) * inputs<1>(axes) + done) * inputs<2>(axes) + w;
            args.output[to * channels + chunk * CHANNELS + c] = from_acc<ELEMENT>(sum);
        }
        UNROLL
        for (int ahead = REACH - 1; ahead > 0; --ahead) sums[ahead] = sums[ahead - 1];
        sums[0] = 0;
    }
}
