//! The pictures: whole files of the format that their names say, with words on the axes, or no files.

use std::fs;

use serde_json::json;

use super::Folder;

/// A weight and the matrix command on it.
fn folder() -> Folder {
    let folder = Folder::new();
    folder.write::<f32>("w.npy", &[2, 3, 3, 3], &[1.0; 54]);
    folder
}

const MATRIX: &str = "matrix w.npy --padding 1 -o m.npz --input-size";

fn args(command: &str) -> Vec<&str> {
    command.split(' ').collect()
}

/// Width and height of a PNG, from its header.
fn png_size(bytes: &[u8]) -> [u32; 2] {
    assert_eq!(&bytes[..8], b"\x89PNG\r\n\x1a\n");
    assert_eq!(&bytes[bytes.len() - 8..bytes.len() - 4], b"IEND");
    [16, 20].map(|at| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()))
}

#[test]
fn patterns_are_drawn_in_the_format_of_the_name() {
    let folder = folder();
    let object = folder.json(&args(&format!("{MATRIX} 4 --plot m.svg")));
    assert_eq!(object["plot"], json!("m.svg"));
    let svg = fs::read_to_string(folder.path("m.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
    for part in ["column", "row", "32 × 48 matrix, nnz 600", ">\n40\n<"] {
        assert!(svg.contains(part), "{part}: {svg}");
    }
    // A cell of its own for every entry: as many units as there are entries, times the extent of a cell.
    let cells: Vec<[f64; 3]> = svg.lines().filter_map(cell).collect();
    let [_, _, side] = cells[0];
    let runs: f64 = cells
        .iter()
        .map(|[x, end, height]| {
            assert_eq!(*height, side);
            (end - x) / side
        })
        .sum();
    assert_eq!(runs, 600.0);
    assert!(!svg.contains("darkest"));

    folder.json(&args(&format!("{MATRIX} 4 --plot m.PNG")));
    let png = fs::read(folder.path("m.PNG")).unwrap();
    assert_eq!(png_size(&png), [1800, 1200]);
    assert_eq!(folder.names(), ["m.PNG", "m.npz", "m.svg", "w.npy"]);
}

/// Left and right end and height of a run of cells.
fn cell(line: &str) -> Option<[f64; 3]> {
    let path = line.strip_prefix('M')?;
    let (x, rest) = path.split_once(' ')?;
    let (_, rest) = rest.split_once('H')?;
    let (end, rest) = rest.split_once('v')?;
    let (height, _) = rest.split_once('H')?;
    Some([x, end, height].map(|number| number.parse().unwrap()))
}

#[test]
fn large_patterns_are_drawn_as_densities() {
    let folder = folder();
    folder.json(&args(&format!("{MATRIX} 60 --plot m.svg")));
    let svg = fs::read_to_string(folder.path("m.svg")).unwrap();
    for part in ["7,200 × 10,800 matrix, nnz ", "darkest cell: ", "10,000"] {
        assert!(svg.contains(part), "{part}");
    }
    assert!(svg.lines().filter_map(cell).count() > 1000);
}

#[test]
fn the_report_names_the_picture() {
    let folder = folder();
    let output = folder.run(&args(&format!("{MATRIX} 4 --plot m.png")));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("\n  plot      m.png, "), "{text}");
}

#[test]
fn bad_pictures_are_refused_before_any_work() {
    let folder = folder();
    for name in ["m.pdf", "m", ".svg", "m.npz"] {
        let command = format!("{MATRIX} 4 --plot {name}");
        folder.fails(2, &command, &["--plot", name, ".svg or .png"]);
    }
    folder.fails(1, &format!("{MATRIX} 4 --plot none/m.svg"), &["--plot none/m.svg", "No such"]);
    // What is wrong with the matrix is wrong before there is a picture.
    folder.fails(2, &format!("{MATRIX} 0 --plot m.svg"), &["--input-size on axis 0 is 0"]);
    folder.fails(2, "matrix w.npy --input-size 2 -o m.npz --plot m.png", &["kernel extent"]);
}
