// Convolution as a matrix product whose patches are read where they lie in the input.
//
//   correlate: target[n, m, at(o)] = bias[m] + Σ weight[m, c, k]·source[n, c, i(o, k)], with i the index
//              map and `at` affine on each axis. Forward is one; the gradient by the input is one for
//              each phase of the stride.
//   gradient:  weight[m, c, k] = Σ other[n, m, o]·source[n, c, i(o, k)].
//
// Terms of a sum, and the elements of C, follow each other as the operands do in memory: channels last,
// positions are the rows of C and terms are (tap, channel); channels first, positions are its columns
// and terms are (channel, tap). All of a batch, and all groups, are one launch.
#include "product.cuh"

// With PLANAR the first axis is known to have extent 1, which saves arithmetic and registers.
#ifdef PLANAR
constexpr bool THREE_AXES = false;
#else
constexpr bool THREE_AXES = true;
#endif

// Blocks on a multiprocessor at a time: two, but where their registers would not hold what is gathered.
#ifdef SPLIT
constexpr bool WHOLE_SUMS = false;
#else
constexpr bool WHOLE_SUMS = true;
#endif
constexpr bool SOME_CHUNKS = A_VECTOR > 1 || B_VECTOR > 1;
#ifdef GRADIENT
constexpr bool ROOMY = !THREE_AXES || SOME_CHUNKS;
#else
constexpr bool ROOMY = !THREE_AXES && SOME_CHUNKS && WHOLE_SUMS;
#endif
constexpr int RESIDENT =
    PRODUCT_THREADS == 256 && (sizeof(Acc) == 8 || (TILE_ROWS * TILE_COLUMNS > 128 * 64 && !ROOMY)) ? 1 : 2;

DEVICE Position take_apart(Index at, const Divisor& plane, const Divisor& line) {
    if (THREE_AXES) return position(at, plane, line);
    Index h = divide(at, line);
    return Position{0, h, at - h * (Index)line.by};
}

// Positions of a batch and taps of channels, and how to take their numbers apart; `Patches` in
// src/conv/cuda/implicit.rs.
HOST struct Patches {
    const ELEMENT* source;
    i64 image, channel, position;  // distances in the source
    i64 group;                     // from a group's channels to the next group's
    i64 count;                     // positions of all images
    Axes axes;
    Divisor positions, plane, line;   // of an image's outputs
    Divisor taps, tap_plane, tap_line;
    Divisor channels;  // of a group
};

// Channel and tap of a term.
struct Term {
    Index channel, tap;
};
DEVICE Term term_of(const Patches& patches, Index k) {
#if LAYOUT == CHANNELS_FIRST
    Index channel = divide(k, patches.taps);
    return Term{channel, k - channel * (Index)patches.taps.by};
#else
    Index tap = divide(k, patches.channels);
    return Term{k - tap * (Index)patches.channels.by, tap};
#endif
}
struct ImagePosition {
    Index image;
    Position at;
};
DEVICE ImagePosition position_of(const Patches& patches, Index n) {
    Index image = divide(n, patches.positions);
    Index at = n - image * (Index)patches.positions.by;
    return ImagePosition{image, take_apart(at, patches.plane, patches.line)};
}

// The patch matrix. What is known of a position and of a term adds up to a padded position.
struct Corner {
    Index offset, d, h, w;
};
DEVICE Corner corner_of_position(const Patches& patches, Index n) {
    if (n >= (Index)patches.count) return Corner{-1, 0, 0, 0};
    ImagePosition from = position_of(patches, n);
    const Axes& axes = patches.axes;
    return Corner{from.image * (Index)patches.image, from.at.d * stride<0>(axes), from.at.h * stride<1>(axes),
                  from.at.w * stride<2>(axes)};
}
DEVICE Corner corner_of_term(const Patches& patches, Index k) {
    if (k >= (Index)(patches.channels.by * patches.taps.by)) return Corner{-1, 0, 0, 0};
    Term term = term_of(patches, k);
    Position tap = take_apart(term.tap, patches.tap_plane, patches.tap_line);
    const Axes& axes = patches.axes;
    return Corner{term.channel * (Index)patches.channel, tap.d * dilation<0>(axes), tap.h * dilation<1>(axes),
                  tap.w * dilation<2>(axes)};
}
DEVICE Index patch_offset(const Patches& patches, const Corner& a, const Corner& b) {
    const Axes& axes = patches.axes;
    Index d = THREE_AXES ? padded_source<0>(axes, a.d + b.d) : 0, h = padded_source<1>(axes, a.h + b.h);
    Index w = padded_source<2>(axes, a.w + b.w);
    if (a.offset < 0 || b.offset < 0 || d < 0 || h < 0 || w < 0) return -1;
    Index at = (d * inputs<1>(axes) + h) * inputs<2>(axes) + w;
    return a.offset + b.offset + at * (Index)patches.position;
}

// Positions against terms of a sum, as in correlate.
template <int WIDTH> struct PatchLoader {
    static constexpr bool ALONG_K = LAYOUT == CHANNELS_LAST;
    static constexpr int VECTOR = WIDTH;
    typedef Corner Row;
    const ELEMENT* base;
    const Patches& patches;
    DEVICE PatchLoader(const Patches& patches, Index group)
        : base(patches.source + group * patches.group), patches(patches) {}
    DEVICE Corner row(Index n) const { return corner_of_position(patches, n); }
    DEVICE Corner term(Index k) const { return corner_of_term(patches, k); }
    DEVICE Index at(const Corner& row, const Corner& term) const { return patch_offset(patches, row, term); }
};
// Channels and taps against the positions that are summed over, as in gradient.
template <int WIDTH> struct PatchColumnLoader {
    static constexpr bool ALONG_K = LAYOUT == CHANNELS_FIRST;
    static constexpr int VECTOR = WIDTH;
    typedef Corner Row;
    const ELEMENT* base;
    const Patches& patches;
    DEVICE PatchColumnLoader(const Patches& patches, Index group)
        : base(patches.source + group * patches.group), patches(patches) {}
    DEVICE Corner row(Index k) const { return corner_of_term(patches, k); }
    DEVICE Corner term(Index n) const { return corner_of_position(patches, n); }
    DEVICE Index at(const Corner& row, const Corner& term) const { return patch_offset(patches, row, term); }
};

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
        : base(args.weight + group * args.weight_group), args(args) {}
    DEVICE Index row(Index m) const { return m < (Index)args.rows ? m * (Index)args.weight_row : -1; }
    DEVICE Index term(Index k) const {
        if (k >= (Index)args.tiling.depth) return -1;
        Term term = term_of(args.patches, k);
        Position tap = take_apart(term.tap, args.patches.tap_plane, args.patches.tap_line);
        return (Index)args.weight_first + term.channel * (Index)args.weight_channel +
               tap.d * (Index)args.weight_step[0] + tap.h * (Index)args.weight_step[1] +
               tap.w * (Index)args.weight_step[2];
    }
    DEVICE Index at(Index row, Index term) const { return row < 0 || term < 0 ? -1 : row + term; }
};
#else
// The weight's own order is that of the terms.
template <int WIDTH> struct WeightLoader : MatrixLoader<LAYOUT == CHANNELS_FIRST, WIDTH> {
    DEVICE WeightLoader(const CorrelateArgs& args, Index group)
        : MatrixLoader<LAYOUT == CHANNELS_FIRST, WIDTH>{args.weight + group * args.weight_group,
                                                        (Index)args.rows, (Index)args.tiling.depth,
                                                        (Index)args.weight_row, (Index)args.weight_term} {}
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
    DEVICE Acc start(Index r, Index c) const {
        Index m = LAYOUT == CHANNELS_LAST ? c : r;
        return bias && m < (Index)args.rows ? to_acc(load(bias + m)) : 0;
    }
    DEVICE ELEMENT value(const Line&, Index, Acc sum) const { return from_acc<ELEMENT>(sum); }
};

#ifdef SUM
KERNEL(correlate_sum, CorrelateArgs, 256) { add_parts<CorrelateTarget>(args); }
#else
KERNEL_RESIDENT(correlate, CorrelateArgs, PRODUCT_THREADS, RESIDENT) {
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
    static constexpr bool ALONG_K = LAYOUT == CHANNELS_FIRST;
    static constexpr int VECTOR = WIDTH;
    typedef Index Row;
    const ELEMENT* base;
    const GradientArgs& args;
    DEVICE OtherLoader(const GradientArgs& args, Index group)
        : base(args.other + group * args.rows * args.other_channel), args(args) {}
    DEVICE Index row(Index m) const { return m < (Index)args.rows ? m * (Index)args.other_channel : -1; }
    DEVICE Index term(Index n) const {
        if (n >= (Index)args.patches.count) return -1;
        Index image = divide(n, args.patches.positions);
        Index position = n - image * (Index)args.patches.positions.by;
        return image * (Index)args.other_image + position * (Index)args.other_position;
    }
    DEVICE Index at(Index row, Index term) const { return row < 0 || term < 0 ? -1 : row + term; }
};

struct GradientTarget {
    typedef ELEMENT Value;
    static constexpr int VECTOR = C_VECTOR;
    ELEMENT* base;
    Index rows, columns, line;
    DEVICE GradientTarget(const GradientArgs& args, Index group)
        : base(args.weight + group * args.weight_group), rows((Index)args.tiling.rows.by),
          columns((Index)args.tiling.columns.by), line((Index)args.weight_line) {}
    DEVICE Line row(Index r) const { return Line{r, r < rows ? r * line : -1}; }
    DEVICE Index column(Index c) const { return c < columns ? c : -1; }
    DEVICE Acc start(Index, Index) const { return 0; }
    DEVICE ELEMENT value(const Line&, Index, Acc sum) const { return from_acc<ELEMENT>(sum); }
};

#ifdef SUM
KERNEL(gradient_sum, GradientArgs, 256) { add_parts<GradientTarget>(args); }
#else
KERNEL_RESIDENT(gradient, GradientArgs, PRODUCT_THREADS, RESIDENT) {
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
