//! States as files.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;

/// All that a state holds.
pub(super) fn bytes<const D: usize>(state: &KfacState<f64, D>) -> Vec<u8> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("state.safetensors");
    state.save(&path).unwrap();
    fs::read(path).unwrap()
}

fn options() -> Vec<KfacOptions> {
    let mut found: Vec<_> =
        KfacMethod::ALL.map(|method| KfacOptions::new().method(method).damping(0.1)).into();
    found.push(KfacOptions::new().rank(2).damping(0.07).decay(0.95));
    found.push(KfacOptions::new().sharing(WeightSharing::Reduce).pi_correction(false));
    found
}

/// Whatever the state, a file gives every bit of it back.
#[test]
fn files_give_states_back() {
    let (layer, x, dy) = small();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("state.safetensors");
    let gradient = tensor::<f64>(&[2, 3, 5], &randoms(30, 51));
    for options in options() {
        let new = || KfacState::<f64, 1>::new(&Device::Cpu, layer, options).unwrap();
        let mut state = new();
        for stage in 0..4 {
            match stage {
                0 => {}
                1 => state.accumulate(&x, &dy).unwrap(),
                2 => state.step(&x, &dy).unwrap(),
                _ => state.set_damping(1.0 / 3.0).unwrap(),
            }
            state.save(&path).unwrap();
            let mut loaded = new();
            loaded.load(&path).unwrap();
            assert_eq!(bytes(&loaded), fs::read(&path).unwrap(), "{options} at stage {stage}");
            assert_eq!(loaded.damping().to_bits(), state.damping().to_bits());
            assert_eq!((loaded.steps(), loaded.examples()), (state.steps(), state.examples()));
            if stage > 1 {
                let [found, expected] =
                    [&loaded, &state].map(|state| state.precondition(&gradient).unwrap());
                assert_eq!(found, expected, "{options}");
                loaded.step(&x, &dy).unwrap();
                let mut other = new();
                other.load(&path).unwrap();
                other.step(&x, &dy).unwrap();
                assert_eq!(bytes(&loaded), bytes(&other));
            }
        }
    }
}

/// A file of another layer, of other options or elements, and a damaged one leave the state as it was.
#[test]
fn files_of_others_are_refused() {
    let (layer, x, dy) = small();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("state.safetensors");
    let options = KfacOptions::new();
    let new = |layer, options| KfacState::<f64, 1>::new(&Device::Cpu, layer, options).unwrap();
    let mut saved = new(layer, options);
    saved.step(&x, &dy).unwrap();
    saved.save(&path).unwrap();

    let refuses = |state: &mut KfacState<f64, 1>, path: &Path, parts: &[&str]| {
        let before = bytes(state);
        let error = state.load(path).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{error} lacks {part}");
        }
        assert_eq!(bytes(state), before, "{error}");
    };
    let without = KfacLayer::new(Conv::new([2]).groups(2), 4, 6, [4]);
    refuses(&mut new(without, options), &path, &["layer", "with bias", "state.safetensors"]);
    let mut ekfac = new(layer, options.method(KfacMethod::Ekfac));
    ekfac.step(&x, &dy).unwrap();
    refuses(&mut ekfac, &path, &["options", "is kfac, expand", "is ekfac, expand"]);
    refuses(&mut new(layer, options.decay(0.5)), &path, &["plain averages", "decay 0.5"]);
    let mut narrow = KfacState::<f32, 1>::new(&Device::Cpu, layer, options).unwrap();
    let error = narrow.load(&path).unwrap_err().to_string();
    assert!(error.contains("f64") && error.contains("f32"), "{error}");

    let whole = fs::read(&path).unwrap();
    let cut = folder.path().join("cut.safetensors");
    let mut state = new(layer, options);
    state.accumulate(&x, &dy).unwrap();
    for length in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&cut, &whole[..length]).unwrap();
        refuses(&mut state, &cut, &["cut.safetensors"]);
    }
    let other = folder.path().join("other.safetensors");
    let view = convmat::io::AnyView::new(&x).unwrap();
    convmat::io::write_safetensors(&other, &[("x", view)]).unwrap();
    refuses(&mut state, &other, &["holds no state"]);
    // The last number of the last tensor.
    let mut damaged = whole.clone();
    let end = damaged.len();
    damaged[end - 8..].copy_from_slice(&f64::NAN.to_le_bytes());
    fs::write(&cut, &damaged).unwrap();
    refuses(&mut state, &cut, &["NaN"]);
    refuses(&mut state, &folder.path().join("none.safetensors"), &["none.safetensors"]);
    // What was there stays when a file cannot be written.
    assert!(saved.save(folder.path().join("none/state.safetensors")).is_err());
    assert_eq!(fs::read(&path).unwrap(), whole);
}

/// A file may count any number of steps and examples; the next ones are none too many.
#[test]
fn counters_of_files_do_not_overflow() {
    let (layer, x, dy) = small();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("state.safetensors");
    let new = || KfacState::<f64, 1>::new(&Device::Cpu, layer, KfacOptions::new()).unwrap();
    let mut state = new();
    state.step(&x, &dy).unwrap();
    state.save(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    let (length, rest) = whole.split_at(8);
    let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
    let (header, data) = rest.split_at(length);
    let mut header = std::str::from_utf8(header).unwrap().trim_end().to_string();
    for (key, found) in [("steps", 1), ("factor_examples", 5)] {
        let at = format!(r#"\"{key}\":{found}"#);
        assert!(header.contains(&at), "{header}");
        header = header.replace(&at, &format!(r#"\"{key}\":{}"#, u64::MAX));
    }
    let length = (header.len() as u64).to_le_bytes();
    fs::write(&path, [&length, header.as_bytes(), data].concat()).unwrap();
    let mut loaded = new();
    loaded.load(&path).unwrap();
    loaded.step(&x, &dy).unwrap();
    assert_eq!((loaded.steps(), loaded.examples()), (u64::MAX, u64::MAX));
}
