// Loaders (product.cuh) of the patch matrix, whose elements are read where they lie in the input.
#pragma once
#include "element.cuh"
#include "geometry.cuh"

SWITCHES(PLANAR, PACKED)

// With PLANAR the first axis is known to have extent 1, which saves arithmetic and registers.
#ifdef PLANAR
constexpr bool THREE_AXES = false;
#else
constexpr bool THREE_AXES = true;
#endif

// Whether channels are neighbours in the source, and terms follow each other as (tap, channel): channels last,
// and with PACKED, for a copy of what lies channels first.
#ifdef PACKED
constexpr bool CHANNELS_ARE_NEIGHBOURS = true;
#else
constexpr bool CHANNELS_ARE_NEIGHBOURS = LAYOUT == CHANNELS_LAST;
#endif

DEVICE Position take_apart(Index at, const Divisor& plane, const Divisor& line) {
    if (THREE_AXES) return position(at, plane, line);
    Index h = divide(at, line);
    return Position{0, h, at - h * (Index)line.by};
}

// Positions of a batch and taps of channels, and how to take their numbers apart.
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
    if (CHANNELS_ARE_NEIGHBOURS) {
        Index tap = divide(k, patches.channels);
        return Term{k - tap * (Index)patches.channels.by, tap};
    }
    Index channel = divide(k, patches.taps);
    return Term{channel, k - channel * (Index)patches.taps.by};
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

// Positions against terms of a sum, as the factor of a convolution.
template <int WIDTH> struct PatchLoader {
    static constexpr bool ALONG_K = CHANNELS_ARE_NEIGHBOURS;
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
// Channels and taps against the positions that are summed over, as the factor of a weight's
// gradient.
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
