//! Layers that the benches are given on the command line.

use convmat::with_axes;
use convmat::{Layout, PaddingMode};

use crate::shapes::Shape;
use crate::shapes::description::Given;

fn given(arguments: &[&str]) -> Result<Given, String> {
    Given::parse(arguments.iter().map(ToString::to_string))
}

#[test]
fn a_described_layer_is_what_it_says() {
    let shape: Shape = "8x64x56x28 96x16x3x5 s2x1 p1x2 g4 d2 m:reflect last".parse().unwrap();
    assert_eq!((shape.batch, shape.channels, shape.outputs, shape.groups), (8, 64, 96, 4));
    assert_eq!((shape.spatial, shape.input), (2, [1, 56, 28]));
    assert_eq!((shape.kernel, shape.stride), ([1, 3, 5], [1, 2, 1]));
    assert_eq!((shape.padding, shape.dilation), ([0, 1, 2], [1, 2, 2]));
    assert_eq!((shape.mode, shape.layout), (PaddingMode::Reflect, Layout::ChannelsLast));
    // (56 + 2·1 − 5) / 2 + 1 and (28 + 2·2 − 9) / 1 + 1.
    assert_eq!(shape.output(), [1, 27, 24]);
    assert_eq!(shape.input_shape(), [8, 56, 28, 64]);

    let plain: Shape = "1x2x9 4x2x3".parse().unwrap();
    assert_eq!((plain.spatial, plain.padding, plain.stride), (1, [0; 3], [1; 3]));
    assert_eq!((plain.mode, plain.layout), (PaddingMode::Zeros, Layout::ChannelsFirst));
    let volume: Shape = "2x6x8x9x10 12x3x1x2x3 g2 p0x1x1".parse().unwrap();
    assert_eq!((volume.spatial, volume.output()), (3, [8, 10, 10]));
}

#[test]
fn a_layers_output_is_the_crates() {
    for text in ["2x3x17 6x3x4 s3 d2 p1", "1x4x9x12 4x1x3x2 g4 d2x3 p2x1 s1x2 m:circular"] {
        let shape: Shape = text.parse().unwrap();
        with_axes!(shape.spatial, D => {
            let geometry = shape.conv::<D>().bind(shape.input_size()).unwrap();
            assert_eq!(geometry.output()[..], shape.output()[3 - D..], "{text}");
            Ok::<(), convmat::Error>(())
        })
        .unwrap();
    }
}

#[test]
fn names_are_descriptions() {
    for shape in Shape::named() {
        assert_eq!(shape.name.parse::<Shape>().unwrap().name, shape.name);
    }
    let shape: Shape = " 8x64x56x56  64x64x3x3 p1\tg1 ".parse().unwrap();
    assert_eq!(shape.name, "8x64x56x56_64x64x3x3_p1_g1");
    let again: Shape = shape.name.parse().unwrap();
    assert_eq!(format!("{again:?}"), format!("{shape:?}"));
}

#[test]
fn other_arguments_are_left() {
    let given = given(&["--bench", "--shape", "1x2x9 4x2x3", "fold", "--shape=conv2"]).unwrap();
    assert_eq!(given.others, ["--bench", "fold"]);
    let names: Vec<&str> = given.shapes.iter().map(|shape| shape.name).collect();
    assert_eq!(names, ["1x2x9_4x2x3", "conv2"]);
}

#[test]
fn what_is_wrong_is_said_with_flag_and_value() {
    assert_eq!(given(&["--shape"]).unwrap_err(), "--shape takes a value");
    let cases = [
        ("", "expected the name of a layer"),
        ("conv3", "no layer has this name; there are stem, conv2"),
        ("8x64 64x64x3", "input \"8x64\" is not of the form NxCx1 to 3 extents"),
        ("8x64x1x1x1x1 64x64x3", "input \"8x64x1x1x1x1\" is not"),
        ("8x64x-5 64x64x3", "input \"8x64x-5\" is not"),
        ("8x64x+5 64x64x3", "input \"8x64x+5\" is not"),
        ("8x64x56 64x64", "weight \"64x64\" is not of the form Ox(C/g)xkernel"),
        ("8x64x56x56 64x64x3", "2 spatial axes (8x64x56x56), and the weight 1 (64x64x3)"),
        ("8x64x56 64x64x3 p1x1", "\"p1x1\" takes one number, or one for each of 1 axes"),
        ("8x64x56 64x64x3 p", "\"p\" takes one number"),
        ("8x64x56 64x64x3 g1x1", "\"g1x1\" takes one number"),
        ("8x64x56 64x64x3 q1", "\"q1\" is not understood; there are p1, s1"),
        ("8x64x56 64x64x3 ×1", "\"×1\" is not understood"),
        ("8x64x56 64x64x3 p1 s1 p2", "\"p2\" says again"),
        ("8x64x56 64x64x3 m:mirror", "\"m:mirror\" is none of m:zeros, m:reflect"),
        ("8x64x56 64x64x3 g2", "64 channels, and the weight 64 for each of 2 groups"),
        ("8x64x56 64x64x3 g0", "for each of 0 groups"),
        ("8x64x56 63x32x3 g2", "63 outputs are not 2 groups"),
        ("0x64x56 64x64x3", "no extent may be 0"),
        ("8x64x56 64x64x0", "kernel"),
        ("8x64x56 64x64x3 s0", "stride"),
        ("8x64x2 64x64x3", "kernel extent on axis 0 is 3"),
        ("8x64x5 64x64x3 p5 m:reflect", "padding"),
        ("4000000000x4000000000x9 1x4000000000x3", "too large to be counted"),
    ];
    for (value, part) in cases {
        let reason = given(&["--shape", value]).unwrap_err();
        assert!(reason.starts_with(&format!("--shape {value:?}: ")), "{reason}");
        assert!(reason.contains(part), "{value}: {reason}");
    }
}
