// The last steps after matrix products, on their sums: finish and add.
#include "convolution.cuh"
#include "element.cuh"

SWITCHES(FINISH, SOURCE)

typedef AccOf<SOURCE>::type Sum;

// finish: adds the parts of each sum in their order, then the bias, and rounds once. It may also transpose.
// The result may be written over the sums.
HOST struct FinishArgs {
    const SOURCE* sums;
    const ELEMENT* bias; // none: null
    ELEMENT* result;
    i64 count; // elements of the result
    i64 parts;
    i64 part; // from one part to the next
    // The source of an element: (index % rows)·columns + index / rows.
    Divisor rows;
    i64 columns;
    Divisor run, channels; // elements of a channel in a row, and how many channels follow each other
};

// add: adds to each input's sum what the products of one tap contribute to it. This is the adjoint of
// gathering the patches of that tap.
HOST struct AddArgs {
    const SOURCE* products; // laid out as the gathered patches of one tap
    SOURCE* sums;           // as the input
    i64 count;              // elements of the sums
    i64 keep;               // whether there are sums to be added to
    i64 tap[3];
    Strides x, y;
    Divisor major, minor; // the two inner axes of the sums together, and the innermost
    Divisor plane, line;  // of the input's positions
    Axes axes;
};

#ifdef FINISH
KERNEL(finish, FinishArgs, 256) {
    Index index = (Index)blockIdx.x * 256 + (Index)threadIdx.x;
    if (index >= (Index)args.count) return;
    Index column = divide(index, args.rows);
    Index source = (index - column * (Index)args.rows.by) * (Index)args.columns + column;
    Sum sum = to_acc(args.sums[source]);
    for (Index part = 1; part < (Index)args.parts; ++part)
        sum += to_acc(load(args.sums + part * (Index)args.part + source));
    if (args.bias) {
        Index run = divide(index, args.run);
        sum += to_acc(args.bias[run - divide(run, args.channels) * (Index)args.channels.by]);
    }
    args.result[index] = from_acc<ELEMENT>(sum);
}
#else
KERNEL(add, AddArgs, 256) {
    Index index = (Index)blockIdx.x * 256 + (Index)threadIdx.x;
    if (index >= (Index)args.count) return;
    const Axes& axes = args.axes;
    Index image = divide(index, args.major);
    Index rest = index - image * (Index)args.major.by;
    Index outer = divide(rest, args.minor), inner = rest - outer * (Index)args.minor.by;
#if LAYOUT == CHANNELS_FIRST
    Index channel = outer;
    Position at = position(inner, args.plane, args.line);
#else
    Index channel = inner;
    Position at = position(outer, args.plane, args.line);
#endif
    Sum sum = args.keep ? args.sums[index] : Sum(0);
    for (Index rd = 0; rd < readers<0>(axes, at.d); ++rd) {
        Index d = reader_output<0>(axes, padded_position<0>(axes, at.d, rd), (Index)args.tap[0]);
        if (d < 0) continue;
        for (Index rh = 0; rh < readers<1>(axes, at.h); ++rh) {
            Index h = reader_output<1>(axes, padded_position<1>(axes, at.h, rh), (Index)args.tap[1]);
            if (h < 0) continue;
            for (Index rw = 0; rw < readers<2>(axes, at.w); ++rw) {
                Index w = reader_output<2>(axes, padded_position<2>(axes, at.w, rw), (Index)args.tap[2]);
                if (w < 0) continue;
                sum += load(args.products + offset(args.y, image, channel, output_at(axes, d, h, w)));
            }
        }
    }
    args.sums[index] = sum;
}
#endif
