// Convolution by its definition: a thread computes one element of the result, for any geometry and any
// number of groups. Nothing here is clever: the other kernels are tested against these loops.
#include "convolution.cuh"
#include "element.cuh"

HOST struct NaiveArgs {
    const ELEMENT* x; // or where dx goes
    const ELEMENT* y; // or dy
    const ELEMENT* weight;
    const ELEMENT* bias; // none: null
    ELEMENT* result;
    i64 count; // elements of the result
    Convolution conv;
    Divisor major, minor; // the two inner axes of the result together, and the innermost
    Divisor group;        // channels of the result in a group; unused for the weight
    Divisor plane, line;  // of the positions that the result has
};

// An element of an activation by its index.
struct Element {
    Index image, channel, group;
    Position at;
};
DEVICE Element element(const NaiveArgs& args, Index index) {
    Element found;
    found.image = divide(index, args.major);
    Index rest = index - found.image * (Index)args.major.by;
    Index outer = divide(rest, args.minor), inner = rest - outer * (Index)args.minor.by;
#if LAYOUT == CHANNELS_FIRST
    found.channel = outer;
    found.at = position(inner, args.plane, args.line);
#else
    found.channel = inner;
    found.at = position(outer, args.plane, args.line);
#endif
    found.group = divide(found.channel, args.group);
    return found;
}

DEVICE Acc product(const ELEMENT* a, const ELEMENT* b, Acc sum) {
    return fused(to_acc(load(a)), to_acc(load(b)), sum);
}

KERNEL(naive_forward, NaiveArgs, 256) {
    Index index = (Index)blockIdx.x * 256 + (Index)threadIdx.x;
    if (index >= (Index)args.count) return;
    const Axes& axes = args.conv.axes;
    const Strides& xs = args.conv.x;
    const WeightStrides& ws = args.conv.weight;
    Index channels = (Index)args.conv.channels;
    Element y = element(args, index);
    Acc sum = args.bias ? to_acc(args.bias[y.channel]) : Acc(0);
    for (Index kd = 0; kd < taps<0>(axes); ++kd) {
        Index d = source<0>(axes, y.at.d, kd);
        for (Index kh = 0; kh < taps<1>(axes); ++kh) {
            Index h = source<1>(axes, y.at.h, kh);
            for (Index kw = 0; kw < taps<2>(axes); ++kw) {
                Index w = source<2>(axes, y.at.w, kw);
                if (d < 0 || h < 0 || w < 0) continue;
                Index tap = tap_at(axes, kd, kh, kw), i = input_at(axes, d, h, w);
                for (Index c = 0; c < channels; ++c)
                    sum = product(args.weight + offset(ws, y.channel, c, tap),
                                  args.x + offset(xs, y.image, y.group * channels + c, i), sum);
            }
        }
    }
    args.result[index] = from_acc<ELEMENT>(sum);
}

KERNEL(naive_backward_input, NaiveArgs, 256) {
    Index index = (Index)blockIdx.x * 256 + (Index)threadIdx.x;
    if (index >= (Index)args.count) return;
    const Axes& axes = args.conv.axes;
    const Strides& ys = args.conv.y;
    const WeightStrides& ws = args.conv.weight;
    Index outputs = (Index)args.conv.outputs;
    Element x = element(args, index);
    Index first = x.group * outputs, input = x.channel - x.group * (Index)args.group.by;
    Acc sum = args.bias ? to_acc(args.bias[x.channel]) : Acc(0);
    for (Index rd = 0; rd < readers<0>(axes, x.at.d); ++rd) {
        Index qd = padded_position<0>(axes, x.at.d, rd);
        if (qd < 0) continue;
        for (Index rh = 0; rh < readers<1>(axes, x.at.h); ++rh) {
            Index qh = padded_position<1>(axes, x.at.h, rh);
            if (qh < 0) continue;
            for (Index rw = 0; rw < readers<2>(axes, x.at.w); ++rw) {
                Index qw = padded_position<2>(axes, x.at.w, rw);
                if (qw < 0) continue;
                for (Index kd = 0; kd < taps<0>(axes); ++kd) {
                    Index d = reader_output<0>(axes, qd, kd);
                    if (d < 0) continue;
                    for (Index kh = 0; kh < taps<1>(axes); ++kh) {
                        Index h = reader_output<1>(axes, qh, kh);
                        if (h < 0) continue;
                        for (Index kw = 0; kw < taps<2>(axes); ++kw) {
                            Index w = reader_output<2>(axes, qw, kw);
                            if (w < 0) continue;
                            Index o = output_at(axes, d, h, w), tap = tap_at(axes, kd, kh, kw);
                            for (Index c = first; c < first + outputs; ++c)
                                sum = product(args.weight + offset(ws, c, input, tap),
                                              args.y + offset(ys, x.image, c, o), sum);
                        }
                    }
                }
            }
        }
    }
    args.result[index] = from_acc<ELEMENT>(sum);
}

KERNEL(naive_backward_weight, NaiveArgs, 256) {
    Index index = (Index)blockIdx.x * 256 + (Index)threadIdx.x;
    if (index >= (Index)args.count) return;
    const Axes& axes = args.conv.axes;
    const Strides &xs = args.conv.x, &ys = args.conv.y;
    Index outer = divide(index, args.major);
    Index rest = index - outer * (Index)args.major.by;
    Index input = divide(rest, args.minor), inner = rest - input * (Index)args.minor.by;
#if LAYOUT == CHANNELS_FIRST
    Index output = outer, tap = inner;
#else
    Index output = inner, tap = outer;
#endif
    Position k = position(tap, args.plane, args.line);
    Index group = divide(output, args.group);
    Index channel = group * (Index)args.conv.channels + input;
    Acc sum = Acc(0);
    for (Index n = 0; n < (Index)args.conv.batch; ++n) {
        for (Index od = 0; od < outputs<0>(axes); ++od) {
            Index d = source<0>(axes, od, k.d);
            if (d < 0) continue;
            for (Index oh = 0; oh < outputs<1>(axes); ++oh) {
                Index h = source<1>(axes, oh, k.h);
                if (h < 0) continue;
                for (Index ow = 0; ow < outputs<2>(axes); ++ow) {
                    Index w = source<2>(axes, ow, k.w);
                    if (w < 0) continue;
                    sum = product(args.y + offset(ys, n, output, output_at(axes, od, oh, ow)),
                                  args.x + offset(xs, n, channel, input_at(axes, d, h, w)), sum);
                }
            }
        }
    }
    args.result[index] = from_acc<ELEMENT>(sum);
}
