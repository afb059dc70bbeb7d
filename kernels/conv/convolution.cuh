// A convolution as its kernels see it; src/conv/problem.rs is the host's view.
#pragma once
#include "geometry.cuh"

// Distances between neighbours, in elements.
HOST struct Strides {
    i64 image, channel, position;
};
HOST struct WeightStrides {
    i64 output, input, tap;
};

HOST struct Convolution {
    i64 batch;
    i64 channels, outputs; // of a group
    Strides x, y;
    WeightStrides weight;
    Axes axes;
};

// Where an element lies. The innermost distance is 1 in each layout, which saves a multiplication.
DEVICE Index offset(const Strides& strides, Index image, Index channel, Index position) {
#if LAYOUT == CHANNELS_FIRST
    return image * (Index)strides.image + channel * (Index)strides.channel + position;
#else
    return image * (Index)strides.image + channel + position * (Index)strides.position;
#endif
}
DEVICE Index offset(const WeightStrides& strides, Index output, Index input, Index tap) {
#if LAYOUT == CHANNELS_FIRST
    return output * (Index)strides.output + input * (Index)strides.input + tap;
#else
    return output + input * (Index)strides.input + tap * (Index)strides.tap;
#endif
}

// Row-major positions.
DEVICE Index input_at(const Axes& axes, Index d, Index h, Index w) {
    return (d * inputs<1>(axes) + h) * inputs<2>(axes) + w;
}
DEVICE Index output_at(const Axes& axes, Index d, Index h, Index w) {
    return (d * outputs<1>(axes) + h) * outputs<2>(axes) + w;
}
DEVICE Index tap_at(const Axes& axes, Index d, Index h, Index w) {
    return (d * taps<1>(axes) + h) * taps<2>(axes) + w;
}
