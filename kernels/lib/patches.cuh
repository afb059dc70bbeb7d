// Loaders (product.cuh) of the patch matrix, whose elements are read where they lie in the input.
#pragma once
#include "element.cuh"
#include "geometry.cuh"

SWITCHES(PLANAR, PACKED, TAP_BITS)

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

#if defined(MODE) && MODE == ZEROS
// What lies outside the input is dropped, so that offsets add up like places do.
constexpr bool AFFINE = true;
#else
constexpr bool AFFINE = false;
#endif
#ifdef TAP_BITS
static_assert(AFFINE, "bits are for taps that are dropped");
#endif

// The patch matrix. What is known of a position and of a term adds up to a place and an offset: of one of them a
// thread has some that stay, the other it goes over.
struct Corner {
    Index offset, d, h, w;
};
// Offset of a place in its image.
DEVICE Index place_offset(const Patches& patches, Index d, Index h, Index w) {
    Index line = THREE_AXES ? plus(times(d, inputs<1>(patches.axes)), h) : h;
    Index place = plus(times(line, inputs<2>(patches.axes)), w);
    return CHANNELS_ARE_NEIGHBOURS ? times(place, (Index)patches.position) : place;
}
// One that a thread goes over: behind the last, w is OUTSIDE.
DEVICE Corner moving(const Patches& patches, Index offset, Index d, Index h, Index w, bool inside) {
    if (AFFINE) offset = plus(offset, place_offset(patches, d, h, w));
    return Corner{offset, d, h, inside ? w : OUTSIDE};
}
// One that stays: places are counted from the input's first. Where it is none, h is OUTSIDE.
DEVICE Corner staying(const Patches& patches, const Corner& at) {
    const Axes& axes = patches.axes;
    Index low_d = (Index)axes.at[0].low, low_h = (Index)axes.at[1].low, low_w = (Index)axes.at[2].low;
    if (at.w == OUTSIDE) return Corner{0, 0, OUTSIDE, 0};
    Index offset = AFFINE ? plus(at.offset, -place_offset(patches, low_d, low_h, low_w)) : at.offset;
    return Corner{offset, at.d - low_d, at.h - low_h, at.w - low_w};
}
DEVICE Corner position_corner(const Patches& patches, Index n) {
    ImagePosition from = position_of(patches, n);
    const Axes& axes = patches.axes;
    return moving(patches, times(from.image, (Index)patches.image), from.at.d * stride<0>(axes),
                  from.at.h * stride<1>(axes), from.at.w * stride<2>(axes), n < (Index)patches.count);
}
DEVICE Corner tap_corner(const Patches& patches, const Term& term, const Position& tap, bool inside) {
    const Axes& axes = patches.axes;
    Index channel = CHANNELS_ARE_NEIGHBOURS ? term.channel : times(term.channel, (Index)patches.channel);
    return moving(patches, channel, times(tap.d, dilation<0>(axes)), times(tap.h, dilation<1>(axes)),
                  times(tap.w, dilation<2>(axes)), inside);
}
DEVICE bool is_term(const Patches& patches, Index k) {
    return k < (Index)(patches.channels.by * patches.taps.by);
}
DEVICE Corner term_corner(const Patches& patches, Index k) {
    Term term = term_of(patches, k);
    Position tap = take_apart(term.tap, patches.tap_plane, patches.tap_line);
    return tap_corner(patches, term, tap, is_term(patches, k));
}
// Where the patch matrix has what a corner that stays and one that moves lead to.
DEVICE Offset patch_offset(const Patches& patches, const Corner& from, const Corner& by) {
    const Axes& axes = patches.axes;
    Index d = THREE_AXES ? plus(from.d, by.d) : 0, h = plus(from.h, by.h), w = plus(from.w, by.w);
    if (AFFINE) {
        bool inside = (Unsigned)h < (Unsigned)inputs<1>(axes) && (Unsigned)w < (Unsigned)inputs<2>(axes);
        if (THREE_AXES) inside = inside && (Unsigned)d < (Unsigned)inputs<0>(axes);
        return Offset{plus(from.offset, by.offset), inside};
    }
    // Padded places are not negative, and what is OUTSIDE is.
    if (plus(h, (Index)axes.at[1].low) < 0 || plus(w, (Index)axes.at[2].low) < 0) return Offset{0, false};
    if (THREE_AXES) d = source_behind<0>(axes, d);
    h = source_behind<1>(axes, h), w = source_behind<2>(axes, w);
    if (d < 0 || h < 0 || w < 0) return Offset{0, false};
    return Offset{from.offset + by.offset + place_offset(patches, d, h, w), true};
}

// Positions that stay and terms that a thread goes over, with TAP_BITS, for which all axes together have at most 31
// taps: a position knows which taps of which axis read nothing from it, a bit for each, all if it is no position. The
// last bit stands for what is no term.
constexpr u32 NO_TERM = 1u << 31;
struct Reach {
    Index offset;
    u32 outside;
};
struct Taps {
    Index offset;
    u32 bits;
};
// Bits of an axis's taps that read outside of it from this place.
template <int A> DEVICE u32 outside_bits(const Axes& axes, Index place) {
    u32 bits = 0;
    UNROLL_BY(1)
    for (Index k = 0; k < taps<A>(axes); ++k)
        bits |= (Unsigned)(place + k * dilation<A>(axes)) < (Unsigned)inputs<A>(axes) ? 0 : 1u << k;
    return bits;
}
DEVICE Reach reach(const Patches& patches, const Corner& from) {
    if (from.h == OUTSIDE) return Reach{0, ~0u};
    const Axes& axes = patches.axes;
    u32 bits = NO_TERM | outside_bits<2>(axes, from.w) | outside_bits<1>(axes, from.h) << taps<2>(axes);
    if (THREE_AXES) bits |= outside_bits<0>(axes, from.d) << (taps<1>(axes) + taps<2>(axes));
    return Reach{from.offset, bits};
}
DEVICE Taps term_taps(const Patches& patches, Index k) {
    Term term = term_of(patches, k);
    Position tap = take_apart(term.tap, patches.tap_plane, patches.tap_line);
    const Axes& axes = patches.axes;
    u32 bits = 1u << tap.w | 1u << (tap.h + taps<2>(axes));
    if (THREE_AXES) bits |= 1u << (tap.d + taps<1>(axes) + taps<2>(axes));
    bool inside = is_term(patches, k);
    Taps found = {tap_corner(patches, term, tap, inside).offset, inside ? bits : NO_TERM};
    // Else its parts would be added to each position one by one.
    keep(found.offset);
    return found;
}

// Positions against terms of a sum, as the factor of a convolution.
template <int WIDTH> struct PatchLoader {
    static constexpr bool ALONG_K = CHANNELS_ARE_NEIGHBOURS;
    static constexpr int VECTOR = WIDTH;
    const ELEMENT* base;
    const Patches& patches;
    DEVICE PatchLoader(const Patches& patches, Index group)
        : base(patches.source + group * patches.group), patches(patches) {
        keep(base);
    }
    DEVICE Corner corner(Index n) const { return staying(patches, position_corner(patches, n)); }
#ifdef TAP_BITS
    typedef Reach Row;
    DEVICE Reach row(Index n) const { return reach(patches, corner(n)); }
    DEVICE Taps term(Index k) const { return term_taps(patches, k); }
    DEVICE Offset at(const Reach& row, const Taps& term) const {
        return Offset{plus(row.offset, term.offset), (row.outside & term.bits) == 0};
    }
#else
    typedef Corner Row;
    DEVICE Corner row(Index n) const { return corner(n); }
    DEVICE Corner term(Index k) const { return term_corner(patches, k); }
    DEVICE Offset at(const Corner& row, const Corner& term) const { return patch_offset(patches, row, term); }
#endif
};
// Channels and taps against the positions that are summed over, as the factor of a weight's
// gradient.
template <int WIDTH> struct PatchColumnLoader {
    static constexpr bool ALONG_K = !CHANNELS_ARE_NEIGHBOURS;
    static constexpr int VECTOR = WIDTH;
    typedef Corner Row;
    const ELEMENT* base;
    const Patches& patches;
    DEVICE PatchColumnLoader(const Patches& patches, Index group)
        : base(patches.source + group * patches.group), patches(patches) {
        keep(base);
    }
    DEVICE Corner row(Index k) const { return staying(patches, term_corner(patches, k)); }
    DEVICE Corner term(Index n) const { return position_corner(patches, n); }
    DEVICE Offset at(const Corner& row, const Corner& term) const { return patch_offset(patches, row, term); }
};
