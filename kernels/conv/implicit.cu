// Convolution as a matrix product whose patches are read where they lie in the input.
//
//   correlate: target[n, m, at(o)] = bias[m] + Σ weight[m, c, k]·source[n, c, i(o, k)], with i the index
//              map and `at` affine on each axis. Forward is one; the gradient by the input is one for
//              each phase of the stride.
//   gradient:  weight[m, c, k] = Σ other[n, m, o]·source[n, c, i(o, k)].
//
// Terms of a sum, and the elements of C, follow each other as the operands do in memory: channels last,
// positions are the rows of C and terms are (tap, channel); channels first, positions are its columns
// and terms are (channel, tap), or, PACKED, source and weight are copies whose terms are (tap, channel), while the
// target is as it is. All of a batch, and all groups, are one launch.
#include "patches.cuh"
#include "product.cuh"

SWITCHES(CORRELATE, ADJOINT, GRADIENT, A_VECTOR, B_VECTOR, C_VECTOR, SUM)

#ifdef CORRELATE

HOST struct CorrelateArgs {
    Patches patches;
    const ELEMENT* weight;
    const ELEMENT* bias;  // may be null
    ELEMENT* target;
    Acc* parts;
    Tiling tiling;
    // Distances in the weight. For forward, from term to term; for the adjoint, whose taps are some of the
    // layer's, from the first of them and from each to the next on each axis.
    i64 weight_group, weight_row, weight_term;
    i64 weight_first, weight_channel, weight_step[3];
    // Distances in the target, from the first output's place and from each to the next on each axis.
    i64 target_first, target_image, target_channel, target_step[3];
    i64 rows;  // target channels of a group
};

#if ADJOINT
template <int WIDTH> struct WeightLoader {
    static constexpr bool ALONG_K = true;
    static constexpr int VECTOR = WIDTH;
    typedef Index Row;
    const ELEMENT* base;
    const CorrelateArgs& args;
    DEVICE WeightLoader(const CorrelateArgs& args, Index group)
        : base(args.weight + args.weight_first + group * args.weight_group), args(args) {
        keep(base);
    }
    DEVICE Index row(Index m) const { return m < (Index)args.rows ? m * (Index)args.weight_row : OUTSIDE; }
    DEVICE Offset term(Index k) const {
        Term term = term_of(args.patches, k);
        Position tap = take_apart(term.tap, args.patches.tap_plane, args.patches.tap_line);
        Index taps = plus(times(tap.h, (Index)args.weight_step[1]), times(tap.w, (Index)args.weight_step[2]));
        if (THREE_AXES) taps = plus(taps, times(tap.d, (Index)args.weight_step[0]));
        return Offset{plus(times(term.channel, (Index)args.weight_channel), taps), is_term(args.patches, k)};
    }
    DEVICE Offset at(Index row, const Offset& term) const {
        return Offset{plus(row, term.at), row >= 0 && term.inside};
    }
};
#else
// The weight is stored in the order of the terms.
template <int WIDTH> struct WeightLoader : MatrixLoader<LAYOUT == CHANNELS_FIRST, WIDTH> {
    DEVICE WeightLoader(const CorrelateArgs& args, Index group)
        : MatrixLoader<LAYOUT == CHANNELS_FIRST, WIDTH>(args.weight + group * args.weight_group,
                                                        (Index)args.rows, (Index)args.tiling.depth,
                                                        args.weight_row, args.weight_term) {}
};
#endif

struct CorrelateTarget {
    typedef ELEMENT Value;
    static constexpr int VECTOR = C_VECTOR;
    ELEMENT* base;
    const ELEMENT* bias;
    const CorrelateArgs& args;
    DEVICE CorrelateTarget(const CorrelateArgs& args, Index group)
        : base(args.target + args.target_first + group * args.rows * args.target_channel),
          bias(args.bias ? args.bias + group * args.rows : nullptr), args(args) {}
    DEVICE Index channel(Index m) const { return m < (Index)args.rows ? m * (Index)args.target_channel : -1; }
    DEVICE Index place(Index n) const {
        if (n >= (Index)args.patches.count) return -1;
        ImagePosition to = position_of(args.patches, n);
        return to.image * (Index)args.target_image + to.at.d * (Index)args.target_step[0] +
               to.at.h * (Index)args.target_step[1] + to.at.w * (Index)args.target_step[2];
    }
    DEVICE Line row(Index r) const { return Line{r, LAYOUT == CHANNELS_LAST ? place(r) : channel(r)}; }
    DEVICE Index column(Index c) const { return LAYOUT == CHANNELS_LAST ? channel(c) : place(c); }
    DEVICE Index nth(Index at) const { return at; }
    DEVICE Acc start(Index r, Index c) const {
        Index m = LAYOUT == CHANNELS_LAST ? c : r;
        return bias && m < (Index)args.rows ? to_acc(load(bias + m)) : 0;
    }
    DEVICE ELEMENT value(const Line&, Index, Acc sum) const { return from_acc<ELEMENT>(sum); }
};

#ifdef SUM
KERNEL(correlate_sum, CorrelateArgs, 256) { add_parts<CorrelateTarget>(args); }
#else
KERNEL_RESIDENT(correlate, CorrelateArgs, PRODUCT_THREADS, RESIDENT_BLOCKS) {
    Work now = work(args.tiling);
#if LAYOUT == CHANNELS_LAST
    PatchLoader<A_VECTOR> a(args.patches, now.batch);
    WeightLoader<B_VECTOR> b(args, now.batch);
#else
    WeightLoader<A_VECTOR> a(args, now.batch);
    PatchLoader<B_VECTOR> b(args.patches, now.batch);
#endif
    tile<CorrelateTarget>(a, b, now, args);
}
#endif

#endif
#ifdef GRADIENT

HOST struct GradientArgs {
    Patches patches;
    const ELEMENT* other;
    ELEMENT* weight;
    Acc* parts;
    Tiling tiling;
    i64 other_image, other_channel, other_position;
    i64 rows;  // the other's channels of a group
    i64 weight_group, weight_line;
};

template <int WIDTH> struct OtherLoader {
    static constexpr bool ALONG_K = !CHANNELS_ARE_NEIGHBOURS;
    static constexpr int VECTOR = WIDTH;
    typedef Index Row;
    const ELEMENT* base;
    const GradientArgs& args;
    DEVICE OtherLoader(const GradientArgs& args, Index group)
        : base(args.other + group * args.rows * args.other_channel), args(args) {
        keep(base);
    }
    DEVICE Index row(Index m) const { return m < (Index)args.rows ? m * (Index)args.other_channel : OUTSIDE; }
    DEVICE Offset term(Index n) const {
        bool inside = n < (Index)args.patches.count;
        // Images follow each other like positions do.
        if (CHANNELS_ARE_NEIGHBOURS) return Offset{times(n, (Index)args.other_position), inside};
        Index image = divide(n, args.patches.positions);
        Index position = n - image * (Index)args.patches.positions.by;
        return Offset{plus(times(image, (Index)args.other_image), times(position, (Index)args.other_position)), inside};
    }
    DEVICE Offset at(Index row, const Offset& term) const {
        return Offset{plus(row, term.at), row >= 0 && term.inside};
    }
};

struct GradientTarget {
    typedef ELEMENT Value;
    static constexpr int VECTOR = C_VECTOR;
    ELEMENT* base;
    Index rows, columns, line;
    const Patches& patches;
    DEVICE GradientTarget(const GradientArgs& args, Index group)
        : base(args.weight + group * args.weight_group), rows((Index)args.tiling.rows.by),
          columns((Index)args.tiling.columns.by), line((Index)args.weight_line), patches(args.patches) {}
    DEVICE Line row(Index r) const { return Line{r, r < rows ? r * line : -1}; }
#if defined(PACKED)
    // Columns are (tap, channel), the weight's are (channel, tap).
    DEVICE Index column(Index c) const {
        Term term = term_of(patches, c);
        return c < columns ? term.channel * (Index)patches.taps.by + term.tap : -1;
    }
    DEVICE Index nth(Index at) const {
        Index channel = divide(at, patches.taps), tap = at - channel * (Index)patches.taps.by;
        return tap * (Index)patches.channels.by + channel;
    }
#else
    DEVICE Index column(Index c) const { return c < columns ? c : -1; }
    DEVICE Index nth(Index at) const { return at; }
#endif
    DEVICE Acc start(Index, Index) const { return 0; }
    DEVICE ELEMENT value(const Line&, Index, Acc sum) const { return from_acc<ELEMENT>(sum); }
};

#ifdef SUM
KERNEL(gradient_sum, GradientArgs, 256) { add_parts<GradientTarget>(args); }
#else
KERNEL_RESIDENT(gradient, GradientArgs, PRODUCT_THREADS, RESIDENT_BLOCKS) {
    Work now = work(args.tiling);
#if LAYOUT == CHANNELS_LAST
    PatchColumnLoader<A_VECTOR> a(args.patches, now.batch);
    OtherLoader<B_VECTOR> b(args, now.batch);
#else
    OtherLoader<A_VECTOR> a(args, now.batch);
    PatchColumnLoader<B_VECTOR> b(args.patches, now.batch);
#endif
    tile<GradientTarget>(a, b, now, args);
}
#endif

#endif
