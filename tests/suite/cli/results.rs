//! What the commands write, against the oracle and the library.

use convmat::io::{self, AnyView, NpzReader, NpzWriter};
use convmat::{Algorithm, Conv, Csr, Element, IndexView, Layout, PaddingMode, with_axes};
use half::{bf16, f16};
use serde_json::{Value, json};

use super::Folder;
use crate::catalogue::{conv, devices, integers, last, tensor, values};
use crate::oracle::Case;

fn join(values: &[usize]) -> String {
    values.iter().map(usize::to_string).collect::<Vec<_>>().join("x")
}

/// The geometry flags of a case, without the kernel.
fn flags(c: &Case) -> Vec<String> {
    let axes = 3 - c.spatial..3;
    let sides: Vec<_> = axes.clone().map(|a| format!("{}:{}", c.low[a], c.high[a])).collect();
    let flags = [
        ("--stride", join(&c.stride[axes.clone()])),
        ("--padding", sides.join("x")),
        ("--dilation", join(&c.dilation[axes])),
        ("--groups", c.groups.to_string()),
        ("--padding-mode", c.mode.to_string()),
        ("--layout", c.layout.to_string()),
    ];
    flags.into_iter().flat_map(|(flag, value)| [flag.into(), value]).collect()
}

fn with<'a>(head: &[&'a str], flags: &'a [String]) -> Vec<&'a str> {
    head.iter().copied().chain(flags.iter().map(String::as_str)).collect()
}

fn geometries() -> [Case; 4] {
    let flat = Case {
        batch: 2,
        channels: 4,
        outputs: 6,
        groups: 2,
        spatial: 2,
        input: [1, 6, 7],
        kernel: [1, 3, 2],
        stride: [1, 2, 1],
        dilation: [1, 1, 2],
        low: [0, 1, 0],
        high: [0, 1, 2],
        mode: PaddingMode::Zeros,
        layout: Layout::ChannelsFirst,
    };
    [
        Case { layout: Layout::ChannelsLast, ..flat.clone() },
        Case {
            spatial: 1,
            groups: 1,
            input: [1, 1, 9],
            kernel: [1, 1, 3],
            stride: [1, 1, 2],
            mode: PaddingMode::Reflect,
            low: [0, 0, 1],
            high: [0, 0, 2],
            ..flat.clone()
        },
        Case {
            spatial: 3,
            input: [3, 4, 5],
            kernel: [2, 3, 2],
            mode: PaddingMode::Circular,
            ..flat.clone()
        },
        flat,
    ]
}

#[test]
fn every_command_equals_the_definition() {
    for (c, device) in
        geometries().into_iter().flat_map(|c| devices().iter().map(move |d| (c.clone(), d)))
    {
        let folder = Folder::on(device);
        let flags = flags(&c);
        let axes = 3 - c.spatial..3;
        let (kernel, size) = (join(&c.kernel[axes.clone()]), join(&c.input[axes]));
        let x = integers(c.input_len(), 1, 3);
        let w = integers(c.weight_len(), 2, 3);
        let b = integers(c.outputs, 3, 3);
        let dy = integers(c.output_len(), 4, 3);
        folder.write::<f64>("x.npy", &c.input_shape(), &x);
        folder.write::<f64>("w.npy", &c.weight_shape(), &w);
        folder.write::<f64>("b.npy", &[c.outputs], &b);
        folder.write::<f64>("dy.npy", &c.output_shape(), &dy);

        let object =
            folder.json(&with(&["unfold", "x.npy", "-o", "a.npy", "--kernel", &kernel], &flags));
        assert_eq!(object["output"]["shape"], json!(c.patch_shape()));
        assert_eq!(object["geometry"]["axes"], json!(c.spatial));
        let patches = folder.read::<f64>("a.npy");
        assert_eq!(patches.shape(), c.patch_shape());
        assert_eq!(values(&patches), c.unfold(&x));

        let fold = ["fold", "a.npy", "-o", "f.npy", "--kernel", &kernel, "--input-size", &size];
        folder.json(&with(&fold, &flags));
        let folded = folder.read::<f64>("f.npy");
        assert_eq!(folded.shape(), c.input_shape());
        assert_eq!(values(&folded), c.fold(&values(&patches)));
        folder.json(&with(&[&fold[..], &["--average"]].concat(), &flags));
        let average =
            with_axes!(c.spatial, D => conv::<D>(&c).fold_average(&patches, last(c.input)));
        assert_eq!(folder.read::<f64>("f.npy"), average.unwrap());

        for algorithm in Algorithm::GENERAL.map(|a| a.to_string()) {
            let object = folder.json(&with(
                &[
                    "conv",
                    "x.npy",
                    "w.npy",
                    "-o",
                    "y.npy",
                    "--bias",
                    "b.npy",
                    "--algorithm",
                    &algorithm,
                ],
                &flags,
            ));
            assert_eq!(object["algorithm"], json!(algorithm));
            let y = folder.read::<f64>("y.npy");
            assert_eq!(y.shape(), c.output_shape());
            assert_eq!(values(&y), c.forward(&x, &w, Some(&b)));
        }

        let object = folder
            .json(&with(&["conv-backward", "x.npy", "w.npy", "dy.npy", "-o", "g.npz"], &flags));
        assert_eq!(object["output"]["arrays"]["dw"]["shape"], json!(c.weight_shape()));
        assert_eq!(values(&folder.read::<f64>("g.npz:dx")), c.backward_input(&dy, &w));
        assert_eq!(values(&folder.read::<f64>("g.npz:dw")), c.backward_weight(&x, &dy));
        assert_eq!(values(&folder.read::<f64>("g.npz:db")), c.backward_bias(&dy));

        check_matrix(&folder, &c, &flags, &size);
        check_transposed(&folder, &c, &flags);
    }
}

/// Compares the archive with the library's matrix, which has tests of its own.
fn assert_archive_is(folder: &Folder, name: &str, object: &Value, matrix: &Csr<f64>) {
    let mut archive = NpzReader::open(folder.path(name)).unwrap();
    let mut integers = |key: &str| archive.read(key).unwrap().to_integers().unwrap();
    let wide = |view: IndexView<'_>| view.iter().map(|i| i as i64).collect::<Vec<_>>();
    assert_eq!(integers("shape"), matrix.shape().map(|n| n as i64));
    assert_eq!(integers("indptr"), wide(matrix.indptr().unwrap()));
    assert_eq!(integers("indices"), wide(matrix.indices().unwrap()));
    assert_eq!(archive.read("format").unwrap().bytes(), b"csr");
    assert_eq!(folder.read::<f64>(&format!("{name}:data")).as_slice(), matrix.data());
    assert_eq!(object["nnz"], json!(matrix.nnz()));
    assert_eq!([&object["rows"], &object["columns"]], matrix.shape().map(|n| json!(n)).each_ref());
    assert_eq!(object["bytes"], json!(matrix.nnz() * 12 + (matrix.rows() + 1) * 4));
}

fn check_matrix(folder: &Folder, c: &Case, flags: &[String], size: &str) {
    let (w, b) = (folder.read::<f64>("w.npy"), folder.read::<f64>("b.npy"));
    let plain = ["matrix", "w.npy", "-o", "m.npz", "--input-size", size];
    let object = folder.json(&with(&[&plain[..], &["--bias", "b.npy"]].concat(), flags));
    let matrix = with_axes!(c.spatial, D => conv::<D>(c).matrix(&w, Some(b.view()), last(c.input)));
    assert_archive_is(folder, "m.npz", &object, &matrix.unwrap());
    let object = folder.json(&with(&[&plain[..], &["--eliminate-zeros"]].concat(), flags));
    let matrix = with_axes!(c.spatial, D => conv::<D>(c).matrix(&w, None, last(c.input)));
    assert_archive_is(folder, "m.npz", &object, &matrix.unwrap().eliminate_zeros().unwrap());
}

/// Transposed convolution and its matrix, with an output padding where the stride allows one.
fn check_transposed(folder: &Folder, c: &Case, flags: &[String]) {
    let output = &c.output()[3 - c.spatial..];
    let extra: Vec<_> = (3 - c.spatial..3).map(|a| c.stride[a].max(c.dilation[a]) - 1).collect();
    let extra = join(&extra);
    let bias = tensor::<f64>(&[c.channels], &integers(c.channels, 5, 3));
    io::write_npy(folder.path("bt.npy"), &bias).unwrap();
    let rest = ["--transposed", "--output-padding", &extra, "--bias", "bt.npy"];
    let (dy, w) = (folder.read::<f64>("dy.npy"), folder.read::<f64>("w.npy"));

    let head = ["conv", "dy.npy", "w.npy", "-o", "t.npy"];
    let object = folder.json(&with(&[&head[..], &rest].concat(), flags));
    assert_eq!(object["geometry"]["transposed"], json!(true));
    let expected = with_axes!(c.spatial, D => {
        let padding = std::array::from_fn(|a| object["geometry"]["output_padding"][a].as_u64().unwrap() as usize);
        conv::<D>(c).transposed(&dy, &w, Some(bias.view()), padding)
    });
    assert_eq!(folder.read::<f64>("t.npy"), expected.unwrap());

    let size = join(output);
    let head = ["matrix", "w.npy", "-o", "m.npz", "--input-size", &size];
    let object = folder.json(&with(&[&head[..], &rest].concat(), flags));
    let expected = with_axes!(c.spatial, D => {
        let of = |a: usize| 3 - D + a;
        let extra = std::array::from_fn(|a| c.stride[of(a)].max(c.dilation[of(a)]) - 1);
        conv::<D>(c).transposed_matrix(&w, Some(bias.view()), last(c.output()), extra)
    });
    assert_archive_is(folder, "m.npz", &object, &expected.unwrap());
}

/// Every element type, read from and written to every file format.
#[test]
fn element_types_and_formats_are_kept() {
    fn check<T: Element>() {
        let folder = Folder::new();
        let (x, w) = (integers(32, 1, 3), integers(18, 2, 3));
        let (x, w) = (tensor::<T>(&[1, 2, 4, 4], &x), tensor::<T>(&[1, 2, 3, 3], &w));
        let mut archive = NpzWriter::create(folder.path("x.npz")).unwrap();
        archive.add("image:0", &x).unwrap();
        archive.add("other", &w).unwrap();
        archive.finish().unwrap();
        let views = [("layer.weight", AnyView::new(&w).unwrap())];
        io::write_safetensors(folder.path("w.safetensors"), &views).unwrap();
        let y = Conv::new([3, 3]).padding([1, 1]).forward(&x, &w, None).unwrap();
        for (output, place) in [
            ("y.npy", "y.npy"),
            ("y.npz", "y.npz:y"),
            ("z.npz:out", "z.npz:out"),
            ("y.safetensors", "y.safetensors:y"),
            ("z.safetensors:out", "z.safetensors:out"),
        ] {
            // The key may be left out where there is one array.
            let weight = "w.safetensors";
            let object =
                folder.json(&["conv", "x.npz:image:0", weight, "--padding", "1", "-o", output]);
            assert_eq!(folder.read::<T>(place), y);
            assert_eq!(object["output"]["dtype"], json!(T::DTYPE.to_string()));
            assert_eq!(object["input"]["source"], json!("x.npz:image:0"));
        }
        let dtype = T::DTYPE.to_string();
        folder.json(&[
            "filter",
            "--channels",
            "2",
            "--kernel",
            "3",
            "--dtype",
            &dtype,
            "-o",
            "f.npy",
        ]);
        let filter = Conv::new([3]).gathering_filter::<T>(2).unwrap();
        assert_eq!(folder.read::<T>("f.npy"), filter);
    }
    check::<f16>();
    check::<bf16>();
    check::<f32>();
    check::<f64>();
}

#[test]
fn filters_are_the_librarys() {
    let folder = Folder::new();
    let conv = Conv::new([3, 2]).groups(2);
    let head = ["filter", "--channels", "4", "--kernel", "3x2", "--groups", "2"];
    folder.json(&[&head[..], &["-o", "f.npy"]].concat());
    assert_eq!(folder.read::<f32>("f.npy"), conv.gathering_filter(4).unwrap());
    folder.json(&[&head[..], &["-o", "l.npy", "--layout", "channels-last"]].concat());
    let last = conv.layout(Layout::ChannelsLast).gathering_filter(4).unwrap();
    assert_eq!(folder.read::<f32>("l.npy"), last);
    let object = folder.json(&[&head[..], &["-o", "s.npz", "--sparse", "--dtype", "f64"]].concat());
    assert_archive_is(&folder, "s.npz", &object, &conv.gathering_filter_csr(4).unwrap());
}

/// SciPy has no bfloat16: matrices of bf16 weights hold f32.
#[test]
fn matrices_of_bfloat16_are_widened() {
    let folder = Folder::new();
    folder.write::<bf16>("w.npy", &[1, 1, 2], &[1.5, -2.0]);
    let object = folder.json(&["matrix", "w.npy", "--input-size", "3", "-o", "m.npz"]);
    assert_eq!(object["dtype"], json!("f32"));
    assert_eq!(values(&folder.read::<f32>("m.npz:data")), [1.5, -2.0, 1.5, -2.0]);
    folder.json(&[
        "filter",
        "--sparse",
        "--channels",
        "1",
        "--kernel",
        "2",
        "--dtype",
        "bf16",
        "-o",
        "f.npz",
    ]);
    assert_eq!(values(&folder.read::<f32>("f.npz:data")), [1.0, 1.0]);
}
