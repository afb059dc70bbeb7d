use convmat::{Device, Error};

/// The probe's answer for a part: for `cuda`, of the first GPU.
fn probe(part: &str) -> Result<String, String> {
    let parts = Device::probe();
    let named = |name: &str| parts.iter().find(|p| p.name == name).map(|p| p.found.clone());
    let numbered = if part == "cuda" { named("cuda:0") } else { None };
    numbered
        .or_else(|| named(part))
        .unwrap_or_else(|| panic!("{part} is not a part that is probed"))
}

#[test]
fn best_device_is_one_that_was_found() {
    let best = Device::best();
    assert!(probe(&best.to_string()).is_ok());
    assert_eq!("auto".parse::<Device>().unwrap(), best);
    assert_eq!("cpu".parse::<Device>().unwrap(), Device::Cpu);
    assert_eq!(Device::Cpu.to_string(), "cpu");
    assert!(!best.description().is_empty());
}

#[test]
fn absent_devices_say_why() {
    for part in ["cuda", "simulator"] {
        match (probe(part), part.parse::<Device>()) {
            (Ok(_), Ok(device)) => assert!(device.to_string().starts_with(part)),
            (Err(reason), Err(Error::DeviceUnavailable { reason: said, .. })) => {
                assert_eq!(said, reason);
            }
            other => panic!("{other:?}"),
        }
    }
    let Err(Error::DeviceUnavailable { device, .. }) = "cuda:999".parse::<Device>() else {
        panic!("nobody has a thousand GPUs")
    };
    assert_eq!(device, "cuda:999");
    for name in ["", "gpu", "cuda:", "cuda:x", "cuda:-1"] {
        assert!(matches!(name.parse::<Device>(), Err(Error::Invalid { .. })), "{name}");
    }
}

/// `CONVMAT_REQUIRE=cuda,nvrtc,simulator` turns the absence of a part into a failure. (`nvdisasm` and
/// `sanitizer` are none of these parts: tests that use them look for them.)
#[test]
fn required_parts_are_present() {
    let required = std::env::var("CONVMAT_REQUIRE").unwrap_or_default();
    for part in required.split(',').filter(|part| !["", "nvdisasm", "sanitizer"].contains(part)) {
        if let Err(reason) = probe(part) {
            panic!("{part} is required, but: {reason}");
        }
    }
}
